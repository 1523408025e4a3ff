"""What lasts is said now and then, in one line."""

from shared import logs
from shared.logs import Reminder, in_a_line


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


def test_each_reason_is_said_at_once_again_after_a_while_and_anew_after_it_was_over(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    reminder = Reminder()
    assert reminder.due("refused")
    assert reminder.due("reset")
    clock.now += logs.REMIND_S - 1
    assert not reminder.due("refused")
    assert not reminder.due("reset")
    clock.now += 1
    assert reminder.due("refused")
    assert not reminder.due("refused")
    reminder.forget()
    assert reminder.due("refused")


def test_reasons_that_differ_each_time_do_not_fill_the_memory(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    reminder = Reminder()
    for number in range(1000):
        clock.now += 1
        assert reminder.due(f"silent for {number} s")
    assert len(vars(reminder)["_said_at"]) <= logs.REMIND_S


def test_an_error_is_said_in_one_line_and_in_the_drivers_own_words():
    class Wrapped(Exception):
        orig = ConnectionRefusedError("Connection refused\n\tIs the server running?\n")

    assert in_a_line(Wrapped("many\nlines")) == "Connection refused Is the server running?"
    assert in_a_line(ValueError("one\ntwo")) == "one two"
