"""Whatever a file name, a class name or an error holds, no control character of it reaches the terminal or the log."""

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from imgrec.errors import ConfigError, printable
from imgrec.terminal import Terminal

ANY = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\x1b[31mred", "a\nb", "a\rb", "\x07", "\x9b2J", "\u202eab", "ab\udcff"]
)


@settings(max_examples=50)
@given(text=ANY)
def test_what_is_printed_and_logged_has_no_control_characters(tmp_path_factory, text):
    log = tmp_path_factory.getbasetemp() / "terminal.txt"
    log.unlink(missing_ok=True)
    terminal = Terminal(quiet=True, log=log)
    table = Table("name")
    table.add_row(Text(text))
    terminal.say(f"class {text}")
    terminal.say(table)
    terminal.note(text)
    terminal.close()
    written = log.read_text()
    assert all(letter.isprintable() for letter in written.replace("\n", ""))
    assert written.startswith("class ")


@given(text=ANY)
def test_an_error_is_one_line(text):
    line = str(ConfigError(f"data.root={text}: no"))
    assert line == f"data.root={printable(text)}: no"
    assert line.isprintable()


@given(text=st.text(st.characters(exclude_categories=["C", "Z"])))
def test_other_letters_stay_as_they_are(text):
    assert printable(text) == text
