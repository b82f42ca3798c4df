"""Columns of a table as text: CSV by the standard library, Parquet by pyarrow."""

import codecs
import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple

from imgrec.errors import ConfigError, DataError, did_you_mean, first_line, first_names, plural

DELIMITERS = ",;\t"


class Table(NamedTuple):
    """The columns by the config key that names each, and the line of the file where each row ends."""

    file: str
    columns: dict[str, list[str]]
    lines: Sequence[int]

    def row(self, index: int) -> str:
        """'train.csv, line 17'; of Parquet, which has no lines, the number of the row, from 1."""
        return f"{self.file}, {'row' if isinstance(self.lines, range) else 'line'} {self.lines[index]}"

    def filled(self, key: str) -> list[str]:
        """A column without the spaces around its texts; DataError for a row that has none."""
        texts = list(map(str.strip, self.columns[key]))
        if "" in texts:
            empty = texts.index("")
            raise DataError(
                f"{self.row(empty)}: {key} is empty, as in {plural(texts.count(''), 'row')} in all. Fill it, or remove the row."
            )
        return texts


def read_columns(file: str, wanted: Mapping[str, str], group: str = "data.") -> Table:
    """The columns `wanted`, {config key: name of the column}, of all rows. group: of the keys, for errors.

    ConfigError for a column that the table does not have, DataError for a file that cannot be read.
    """
    if not os.path.isfile(file):
        raise DataError(f"data.file={file}: there is no such file. Set data.file=TABLE.csv.")
    try:
        table = (_read_parquet if file.lower().endswith(".parquet") else _read_csv)(file, wanted, group)
    except OSError as error:
        raise DataError(
            f"data.file={file} cannot be read: {error.strerror or first_line(error)}. Fix it, or name another."
        ) from error
    if not table.lines:
        raise DataError(f"{file} has no rows below its header. Add some: each is an image.")
    return table


def _read_csv(file: str, wanted: Mapping[str, str], group: str) -> Table:
    with open(file, "rb") as binary:
        utf16 = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel saves "Unicode text"
    headers: dict[str, list[str]] = {}
    lines: list[int] = []
    texts: list[str] = []  # of all rows, one after another: a million tuples would cost the garbage collector seconds
    try:
        with open(file, newline="", encoding="utf-16" if utf16 else "utf-8-sig") as text:
            for delimiter in DELIMITERS:
                text.seek(0)
                reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
                with suppress(csv.Error):  # quotes that another delimiter follows
                    headers[delimiter] = list(map(str.strip, next(filter(None, reader), [])))
            delimiter = max(headers, key=lambda d: (set(wanted.values()) <= set(headers[d]), len(headers[d])), default=",")
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
            header = list(map(str.strip, next(filter(None, reader), [])))
            chosen = itemgetter(*_places(file, wanted, header, group), 0)  # 0: of a single place it would return no tuple
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue
                    raise DataError(
                        f"{file}, line {reader.line_num}: {len(row)} values, but the header has {len(header)} columns. "
                        "Fix the line; a value with a delimiter in it needs quotes around it."
                    )
                texts += chosen(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {first_line(error)}. Fix the quotes of this line.") from error
    except UnicodeError as error:
        raise DataError(
            f"{_undecodable(file)} is not UTF-8. Save the table as UTF-8, such as by: iconv -f CP1252 -t UTF-8 OLD > NEW"
        ) from error
    return Table(file, {key: texts[k :: len(wanted) + 1] for k, key in enumerate(wanted)}, lines)


def _undecodable(file: str) -> str:
    """The first line that is no UTF-8."""
    with open(file, "rb") as binary:
        for number, line in enumerate(binary, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{file}, line {number} with the byte {line[error.start]:#04x}"
    return file


def _read_parquet(file: str, wanted: Mapping[str, str], group: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb") as source:  # pyarrow takes no path that is no UTF-8
            _places(file, wanted, pq.read_schema(source).names, group)
            found = pq.read_table(source, columns=list(dict.fromkeys(wanted.values())))
        columns = {key: found.column(name).cast(pa.string()).to_pylist() for key, name in wanted.items()}
    except (pa.ArrowException, UnicodeError) as error:  # UnicodeError: texts of a damaged file
        raise DataError(
            f"data.file={file} cannot be read: {first_line(error)}. Its columns have to be texts or numbers."
        ) from error
    return Table(file, {key: [text or "" for text in texts] for key, texts in columns.items()}, range(1, len(found) + 1))


def _places(file: str, wanted: Mapping[str, str], header: Sequence[str], group: str) -> list[int]:
    if not header:
        raise DataError(f"{file} is empty. Its first line names the columns, and each other line is an image.")
    for key, name in wanted.items():
        if header.count(name) != 1:
            what = f"{header.count(name)} columns" if name in header else "no column"
            raise ConfigError(
                f"{group}{key}={name}: {file} has {what} of this name.{did_you_mean(name, header)} "
                f"It has: {first_names(header, 10)}. Set {group}{key}=COLUMN."
            )
    return [header.index(name) for name in wanted.values()]
