"""Sessions driven at random beside a plain model: refresh, reuse, sign-out, disabling, expiry and rotation of keys.

The model keeps plain values and knows nothing of SQL. After each step both agree about every token ever handed out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from auth_service import models, records
from auth_service.domain import Account
from auth_service.records import Origin
from auth_service.sessions import opening
from auth_service.sessions.domain import Refreshing
from shared.errors import InvalidGrant
from shared.events import Identity
from shared.revocations import Revocations
from tests.databases import Databases
from tests.integration.support import Bench

HERE = {"network": "192.0.2.1", "client": "app/1", "session_id": None}
GRACE, WEEK, MONTH = 60, 7 * 86400, 30 * 86400
# No sum of a few of them comes near a limit, so the time that the test itself takes decides nothing.
STEPS = (25, 61, 172_807)
BENCHES: list[Bench] = []
DATABASES: list[Databases] = []
# How often each row of the table was reached.
REACHED: Counter[str] = Counter()


@dataclass
class Session:
    """A session as a child would keep it: every refresh token it ever handed out, the newest last."""

    user_id: str
    session_id: UUID
    tokens: list[str]
    kids: list[str]
    rotated_at: int
    expires_at: int
    ends_at: int
    ended: bool = False
    access: list[tuple[str, int]] = field(default_factory=list)  # with the version that it has


@dataclass
class User:
    disabled: bool = False
    version: int = 1


class Sessions(RuleBasedStateMachine):
    """The service beside its model."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = BENCHES
        self.keys: tuple[tuple[str, str], ...] = ()
        self.made = 0
        self.now = 0
        self.last_signed: dict[str, int] = {}
        self.users = {f"u-{uuid4()}": User() for _ in range(2)}
        self.sessions: list[Session] = []
        self.known = Revocations(lambda: 0.0)
        self.position: str | None = None
        with self.replicas[0].sessions.begin() as session:
            models.add(session, [Account(user_id, user_id, roles=("customer",)) for user_id in self.users])
        self.new_key()

    def _use(self, *keys: tuple[str, str]) -> None:
        self.keys = keys
        for bench in self.replicas:
            bench.service.settings = replace(bench.service.settings, auth_keys=keys)

    @property
    def kids(self) -> list[str]:
        return [kid for kid, _ in self.keys]

    @rule()
    def new_key(self) -> None:
        """A new key signs from now on; at most three are listed."""
        self.made += 1
        self._use((f"k{self.made}", f"secret number {self.made} of more than 32 bytes"), *self.keys[:2])

    @precondition(lambda self: len(self.keys) > 1)
    @rule()
    def drop_the_oldest_key(self) -> None:
        self._use(*self.keys[:-1])

    @precondition(lambda self: sum(not one.ended for one in self.sessions) < 2)
    @rule(user=st.integers(0, 1), replica=st.integers(0, 1))
    def sign_in(self, user: int, replica: int) -> None:
        user_id = list(self.users)[user]
        if self.users[user_id].disabled:
            return
        with self.replicas[replica].sessions.begin() as session:
            row = session.get(models.User, user_id)
            assert row is not None
            account = models.account_of(row)
            session_id = opening.open_session(session, self.keys, account, Origin(None, "192.0.2.1", None, "app/1"))
        answer = opening.answer(self.keys, account, session_id, None)
        made = Session(
            user_id, session_id, [answer["refresh_token"]], self.kids[:1], self.now, self.now + WEEK, self.now + MONTH
        )
        made.access.append((answer["access_token"], self.users[user_id].version))
        self.sessions.append(made)

    @precondition(lambda self: self.sessions)
    @rule(replica=st.integers(0, 1), times=st.integers(1, 3))
    def refresh_the_newest(self, replica: int, times: int) -> None:
        for _ in range(times):
            self._refresh(self.sessions[-1], 0, replica)

    @precondition(lambda self: any(len(one.tokens) > 1 and not one.ended for one in self.sessions))
    @rule(replica=st.integers(0, 1), back=st.sampled_from([1, 1, 2]))
    def refresh_a_used_one(self, replica: int, back: int) -> None:
        one = next(one for one in self.sessions if len(one.tokens) > 1 and not one.ended)
        self._refresh(one, back, replica)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), replica=st.integers(0, 1), back=st.integers(0, 3))
    def refresh_any(self, data: st.DataObject, replica: int, back: int) -> None:
        self._refresh(data.draw(st.sampled_from(self.sessions), label="session"), back, replica)

    def _refresh(self, one: Session, back: int, replica: int) -> None:
        place = max(0, len(one.tokens) - 1 - back)
        answered = self._answer(replica, one.tokens[place])
        assert (answered is not None) == self._expect(one, place), "whether it is answered"
        if answered is not None:
            if place == len(one.tokens) - 1:
                self._rotate(one, answered["refresh_token"])
            assert answered["refresh_token"] == one.tokens[place + 1], "every answer is the one successor"
            one.access.append((answered["access_token"], self.users[one.user_id].version))

    def _expect(self, one: Session, place: int) -> bool:
        """The table. A reuse changes the model."""
        over = self.now >= min(one.expires_at, one.ends_at)
        if one.kids[place] not in self.kids or one.ended or over or self.users[one.user_id].disabled:
            REACHED["refuse"] += 1
            return False
        if place == len(one.tokens) - 1:
            REACHED["rotate"] += 1
            return True
        if place == len(one.tokens) - 2 and self.now - one.rotated_at <= GRACE:
            REACHED["repeat"] += 1
            return one.kids[-1] in self.kids
        REACHED["reuse"] += 1
        one.ended = True
        return False

    def _rotate(self, one: Session, successor: str) -> None:
        assert successor not in one.tokens
        one.tokens.append(successor)
        one.kids.append(self.kids[0])
        one.rotated_at, one.expires_at = self.now, min(one.ends_at, self.now + WEEK)

    def _answer(self, replica: int, token: str) -> dict[str, Any] | None:
        try:
            return dict(self.replicas[replica].service.refresh(token, HERE))
        except InvalidGrant:
            return None

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), replica=st.integers(0, 1), everywhere=st.booleans())
    def sign_out(self, data: st.DataObject, replica: int, everywhere: bool) -> None:
        one = data.draw(st.sampled_from(self.sessions), label="session")
        bench = self.replicas[replica]
        bench.called_by(Identity(one.user_id, ("customer",)))
        bench.service.sign_out(everywhere, {**HERE, "session_id": str(one.session_id)})
        if everywhere:
            self._end_all(one.user_id)
        else:
            one.ended = True

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), replica=st.integers(0, 1))
    def revoke(self, data: st.DataObject, replica: int) -> None:
        one = data.draw(st.sampled_from(self.sessions), label="session")
        place = data.draw(st.integers(0, len(one.tokens) - 1), label="token")
        self.replicas[replica].service.revoke_token(one.tokens[place], HERE)
        one.ended = one.ended or one.kids[place] in self.kids

    @rule(user=st.integers(0, 1))
    def disable_or_enable(self, user: int) -> None:
        user_id = list(self.users)[user]
        disabled = not self.users[user_id].disabled
        with self.replicas[0].sessions.begin() as session:
            row = models.lock(session, user_id)
            assert row is not None
            row.disabled = disabled
            if disabled:
                records.revoke_all(session, row, "disabled")
                self._end_all(user_id)
        self.users[user_id].disabled = disabled

    def _end_all(self, user_id: str) -> None:
        self.users[user_id].version += 1
        for one in self.sessions:
            if one.user_id == user_id:
                one.ended = True

    @rule(seconds=st.sampled_from(STEPS))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        DATABASES[0].run(
            "auth",
            "UPDATE sessions SET rotated_at = rotated_at - make_interval(secs => :s), expires_at = expires_at"
            " - make_interval(secs => :s), ends_at = ends_at - make_interval(secs => :s) WHERE user_id = ANY(:users)",
            s=seconds,
            users=list(self.users),
        )

    @invariant()
    def gateways_refuse_what_has_ended_and_nothing_else(self) -> None:
        """Of sessions whose end a gateway is told; an end by time needs none, since a token lives 15 minutes."""
        bench = self.replicas[0]
        bench.called_by(Identity("system:gateway", ("system",)))
        following = None
        while True:
            page = bench.service.revocations(self.position)
            self.known.take(page["items"])
            following = following or page["since"]
            self.position = page["next"]
            if self.position is None:
                break
        self.position = following
        for one in self.sessions:
            for _, version in one.access:
                refused = self.known.is_revoked(one.user_id, version, str(one.session_id))
                assert refused == (one.ended or version < self.users[one.user_id].version)

    @invariant()
    def every_session_stands_as_the_model_says(self) -> None:
        ids = [one.session_id for one in self.sessions]
        rows = DATABASES[0].rows(
            "auth", "SELECT session_id, generation, kid, ended_at FROM sessions WHERE session_id = ANY(:ids)", ids=ids
        )
        stored = {row["session_id"]: (row["generation"], row["kid"], row["ended_at"] is not None) for row in rows}
        wanted = {one.session_id: (len(one.tokens), one.kids[-1], one.ended) for one in self.sessions}
        assert stored == wanted


@pytest.fixture
def two_replicas(bench: Callable[..., Bench], database: Databases) -> Iterator[None]:
    BENCHES[:] = [bench("auth"), bench("auth")]
    DATABASES[:] = [database]
    yield
    BENCHES.clear()
    DATABASES.clear()


@pytest.mark.usefixtures("two_replicas")
def test_sessions_do_what_the_model_does() -> None:
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=25,
            derandomize=True,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert REACHED.keys() == set(Refreshing), "every row of the table was reached"
    assert min(REACHED.values()) >= 5, REACHED
