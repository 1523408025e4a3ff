"""People, their sessions, proofs, identities and keys, and what was revoked.

A user gets an id that never changes. Those who are there keep their name as their id, because rows of other services
name them by it. The version before still inserts users by name alone: a trigger gives these an id, too.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.migrations import lock_in_short_attempts

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
phase = "expand"

MOMENT = sa.DateTime(timezone=True)
NOW = sa.text("now()")


def upgrade() -> None:
    """Give users their ids, and create the tables around them."""
    lock_in_short_attempts("users")
    _extend_users()
    op.create_table(
        "proofs",
        sa.Column("proof_id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("about", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("display_name", sa.Text),
        sa.Column("locale", sa.Text, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("subject", sa.Text),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("used_at", MOMENT),
        sa.Column("sent_at", MOMENT),
        sa.Column("given_up_at", MOMENT),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("send_after", MOMENT, nullable=False, server_default=NOW),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_proofs_user_id"),
        sa.PrimaryKeyConstraint("proof_id", name="pk_proofs"),
    )
    op.create_index("ix_proofs_email_created_at", "proofs", ["email", "created_at"])
    op.create_index("ix_proofs_network_created_at", "proofs", ["network", "created_at"])
    op.create_index("ix_proofs_user_id", "proofs", ["user_id"])
    unsent = sa.text("sent_at IS NULL AND given_up_at IS NULL")
    op.create_index("ix_proofs_unsent", "proofs", ["send_after"], postgresql_where=unsent)
    op.create_index("ix_proofs_expires_at", "proofs", ["expires_at"])
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("kid", sa.Text, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False, server_default="1"),
        sa.Column("rotated_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("ends_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
        sa.Column("ended_why", sa.Text),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_sessions_user_id"),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
    )
    op.create_index(
        "ix_sessions_live", "sessions", ["user_id", "session_id"], postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "revocations",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("version", sa.Integer),
        sa.Column("session_id", sa.Uuid),
        sa.Column("at", MOMENT, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.PrimaryKeyConstraint("id", name="pk_revocations"),
    )
    op.create_index("ix_revocations_at", "revocations", ["at"])
    op.create_table(
        "auth_events",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("actor_id", sa.Text),
        sa.Column("session_id", sa.Uuid),
        sa.Column("network", sa.Text),
        sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.PrimaryKeyConstraint("id", name="pk_auth_events"),
    )
    op.create_index("ix_auth_events_user_id_id", "auth_events", ["user_id", "id"])
    op.create_index(
        "ix_auth_events_to_others",
        "auth_events",
        ["actor_id"],
        postgresql_where=sa.text("actor_id IS DISTINCT FROM user_id"),
    )
    op.create_index("ix_auth_events_at", "auth_events", ["at"], postgresql_using="brin")
    # The service's own role can add events and change none; this forgets those that are older than promised.
    op.execute(
        "CREATE FUNCTION purge_auth_events(most bigint) RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        " SET search_path = public, pg_temp AS $$ WITH gone AS (DELETE FROM auth_events WHERE id IN (SELECT id"
        " FROM auth_events WHERE at < now() - interval '400 days' LIMIT most) RETURNING 1) SELECT count(*) FROM gone $$"
    )
    op.execute("REVOKE ALL ON FUNCTION purge_auth_events(bigint) FROM PUBLIC")
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("roles", ARRAY(sa.Text), nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=NOW),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("last_used_on", sa.Date),
        sa.Column("revoked_at", MOMENT),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_api_keys_user_id"),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
    )
    op.create_index("ix_api_keys_user_id_key_id", "api_keys", ["user_id", "key_id"])
    op.create_table(
        "identities",
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("linked_at", MOMENT, nullable=False, server_default=NOW),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name="fk_identities_user_id"),
        sa.PrimaryKeyConstraint("provider", "subject", name="pk_identities"),
        sa.UniqueConstraint("user_id", "provider", name="uq_identities_user_id_provider"),
    )
    op.create_table(
        "oauth_attempts",
        sa.Column("attempt_id", sa.Uuid, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("state_hash", sa.Text, nullable=False),
        sa.Column("nonce", sa.Text, nullable=False),
        sa.Column("verifier", sa.Text, nullable=False),
        sa.Column("redirect_uri", sa.Text, nullable=False),
        sa.Column("link_user_id", sa.Text),
        sa.Column("link_session_id", sa.Uuid),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("used_at", MOMENT),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_oauth_attempts"),
    )
    op.create_index("ix_oauth_attempts_expires_at", "oauth_attempts", ["expires_at"])
    # A crash of the database forgets it: whoever guesses begins again at nothing, and nobody else is hurt.
    op.create_table(
        "sign_in_failures",
        sa.Column("bucket", sa.Text, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("pauses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("since", MOMENT, nullable=False),
        sa.Column("paused_until", MOMENT),
        sa.PrimaryKeyConstraint("bucket", name="pk_sign_in_failures"),
        prefixes=["UNLOGGED"],
    )
    op.create_index("ix_sign_in_failures_since", "sign_in_failures", ["since"])


def _extend_users() -> None:
    op.add_column("users", sa.Column("user_id", sa.Text))
    for column in (
        sa.Column("email", sa.Text),
        sa.Column("display_name", sa.Text),
        sa.Column("password_at", MOMENT),
        sa.Column("kind", sa.Text, nullable=False, server_default="person"),
        sa.Column("version", sa.Integer, nullable=False, server_default="1"),
        sa.Column("locale", sa.Text, nullable=False, server_default="en"),
        sa.Column("erase_after", MOMENT),
        sa.Column("erased_at", MOMENT),
    ):
        op.add_column("users", column)
    op.execute("UPDATE users SET user_id = name, password_at = created_at")
    op.execute(
        "CREATE FUNCTION name_as_user_id() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.user_id := coalesce(NEW.user_id, NEW.name); RETURN NEW; END'"
    )
    op.execute("CREATE TRIGGER users_user_id BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION name_as_user_id()")
    op.alter_column("users", "user_id", nullable=False)
    op.execute("ALTER TABLE users DROP CONSTRAINT pk_users, ADD CONSTRAINT pk_users PRIMARY KEY (user_id)")
    op.alter_column("users", "name", nullable=True)
    op.alter_column("users", "password_hash", nullable=True)
    op.create_unique_constraint("uq_users_name", "users", ["name"])
    op.create_unique_constraint("uq_users_email", "users", ["email"])


def downgrade() -> None:
    """Everybody without a name or a password is lost, and so are all sessions, keys and records."""
    for table in (
        *("sign_in_failures", "oauth_attempts", "identities", "api_keys", "auth_events", "revocations"),
        *("sessions", "proofs"),
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION purge_auth_events(bigint)")
    op.execute("DELETE FROM users WHERE name IS NULL OR password_hash IS NULL")
    op.drop_constraint("uq_users_email", "users")
    op.drop_constraint("uq_users_name", "users")
    op.alter_column("users", "name", nullable=False)
    op.alter_column("users", "password_hash", nullable=False)
    op.execute("ALTER TABLE users DROP CONSTRAINT pk_users, ADD CONSTRAINT pk_users PRIMARY KEY (name)")
    op.execute("DROP TRIGGER users_user_id ON users")
    op.execute("DROP FUNCTION name_as_user_id()")
    for column in (
        *("erased_at", "erase_after", "locale", "version", "kind", "password_at", "display_name", "email", "user_id"),
    ):
        op.drop_column("users", column)
