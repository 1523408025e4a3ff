"""A script for `make shell` runs as Python runs a script: whole or not at all, silent but for what it prints."""

import pytest

from ops.cli.shell import run_script


def test_a_script_without_empty_lines_runs_whole_and_prints_no_value_of_an_expression(capsys):
    assert run_script(b"for i in range(2):\n    print(i, word)\nprint('sent')\n1 + 1\n", {"word": "times"}) == 0
    assert capsys.readouterr() == ("0 times\n1 times\nsent\n", "")


@pytest.mark.parametrize(
    ("source", "printed", "error"),
    [
        (b"print(1)\nx = (\n", "", "SyntaxError: '(' was never closed"),
        (b"print(1)\x00", "", "SyntaxError: source code string cannot contain null bytes"),
        (b"print('\xff')", "", "SyntaxError: (unicode error) 'utf-8' codec"),
        (b"print(1)\ndef half(): return 1 / 0\nhalf()\nprint(2)", "1\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_script_that_cannot_be_compiled_does_nothing_and_one_that_raises_ends_there(source, printed, error, capsys):
    assert run_script(source, {}) == 1
    shown = capsys.readouterr()
    assert shown.out == printed
    assert shown.err.splitlines()[-1].startswith(error)
    assert "shell.py" not in shown.err


def test_a_traceback_shows_the_lines_of_the_script(capsys):
    assert run_script(b"def half():\n    return 1 / 0\nhalf()\n", {}) == 1
    assert '  File "<stdin>", line 3, in <module>\n    half()\n' in capsys.readouterr().err


def test_a_script_ends_with_the_exit_code_that_it_chooses():
    with pytest.raises(SystemExit) as ended:
        run_script(b"import sys; sys.exit(7)", {})
    assert ended.value.code == 7


def test_a_script_is_compiled_without_the_features_that_the_shell_itself_uses(capsys):
    assert run_script(b"def f(x: int): ...\nprint(f.__annotations__)\n", {}) == 0
    assert capsys.readouterr().out == "{'x': <class 'int'>}\n"
