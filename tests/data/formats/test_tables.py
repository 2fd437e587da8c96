"""The one reader of CSV tables."""

import pytest

from tar3d.data.formats.tables import read_checked_rows, read_header, read_rows

ROWS = [(2, {"id": "a", "caption": "a chair, red"}), (3, {"id": "b", "caption": "schön"})]
PLAIN = 'id,caption\r\na,"a chair, red"\r\nb,schön\r\n'


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        b"\xfe\xff" + PLAIN.encode("utf-16-be"),
        PLAIN.replace("\r\n", "\n").encode(),
        PLAIN.replace("\r\n", "\r").encode(),
        PLAIN.rstrip().encode(),
        "id;caption\na;a chair, red\nb;schön\n".encode(),
        "id\tcaption\na\ta chair, red\nb\tschön\n".encode(),
        'id,caption,,\na,"a chair, red",,\nb,schön\n,,,\n\n'.encode(),
        ' id , caption\na,"a chair, red"\nb,schön\n'.encode(),
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    assert list(read_rows(tmp_path / "t.csv", "id", "caption")) == ROWS
    assert read_header(tmp_path / "t.csv") == ["id", "caption"]


def test_a_stated_delimiter_and_short_rows(tmp_path):
    (tmp_path / "t.csv").write_text('sep=;\nid;caption\na;b\nc\n"d";"two\nlines"\n')
    assert list(read_rows(tmp_path / "t.csv", "id")) == [
        (3, {"id": "a", "caption": "b"}),
        (4, {"id": "c", "caption": ""}),
        (5, {"id": "d", "caption": "two\nlines"}),
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is empty: .* it needs the columns id, caption"),
        (b"ID,text\n", r"no column id or caption; its columns are ID, text;.* is 'ID' meant"),
        (b"id,id,caption\n", r"two columns 'id'"),
        ("id,caption\na,schön\n".encode("cp1252"), r"line 2 holds the byte 0xF6, 'ö' in Windows"),
        ("id,caption\na,b\n".encode("utf-16-le"), r"line 1 holds a NUL character"),
        (b"id,caption\na,b\0\n", r"line 2 holds a NUL character"),
        (b'id,caption\na,"b\nc,d\ne,f\n', r"line 2: a quote opens here .* up to line 4"),
        (b'id,caption\na,"b\nc,d"\ne,f\n', r"line 2: a quote opens here .* up to line 3"),
        (b'id,caption\na,"b\nc,"d"\n', r"line 2: a quote opens here .* up to line 3"),
        (b'"id,caption\n', r"the header is no CSV"),
    ],
)
def test_what_spoils_a_table_is_refused_by_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path / 't.csv'}.*{message}"):
        list(read_checked_rows(tmp_path / "t.csv", "id", "caption"))


def test_a_bad_row_spoils_nothing_but_itself(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,caption\na,b, c\nd,"e" f\ng,h\ni,"j\n')
    rows = list(read_checked_rows(path, "id", "caption"))
    assert [(row.line, bool(row.problem)) for row in rows] == [
        (2, True),
        (3, True),
        (4, False),
        (5, True),
    ]
    assert "more cells than the header" in rows[0].problem and "never closed" in rows[3].problem
    with pytest.raises(ValueError, match=r"t\.csv, line 2: more cells"):
        list(read_rows(path, "id", "caption"))


@pytest.mark.parametrize("cut, count", [("id,cap", 0), ('id,caption\na,b\nc,"d', 1), ("", 0)])
def test_a_last_line_that_a_kill_cut_off_can_be_left_out(tmp_path, cut, count):
    (tmp_path / "t.csv").write_text(cut)
    assert len(list(read_checked_rows(tmp_path / "t.csv", "id", cut_off=True))) == count
