"""A multipart body as it arrives in; one file on the disk and its purpose out, never held whole."""

from collections.abc import AsyncIterator
from typing import Any

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from core.errors import UserError
from launch.service.shelf import Files, Incoming, ending

FIELD = 1024
"""Bytes of a field that is no file."""
PLAIN = {"purpose"}


class Upload:
    """Callbacks of the parser; it must be closed, which removes what was not kept."""

    def __init__(self, files: Files, owner: str):
        self.files, self.owner = files, owner
        self.fields: dict[str, bytes] = {}
        self.filename: str | None = None
        self.part: Incoming | None = None
        self.ended = False
        self._header, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._field: str | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._name,
            "on_header_value": self._said,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self.part is not None:
            self.part.close()

    def _begin(self) -> None:
        self._headers, self._field = {}, None

    def _name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _said(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        field = options.get(b"name", b"").decode(errors="replace")
        if field == "file" and self.part is None:
            self.filename = options.get(b"filename", b"file").decode(errors="replace")
            ending(self.filename)  # before anything is written
            self.part = self.files.incoming(self.owner)
            return
        if field not in PLAIN or field in self.fields:
            raise UserError(f"an upload has one 'file' and a 'purpose', not {field[:80]!r}.")
        self._field = field
        self.fields[field] = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            assert self.part is not None
            self.part.write(data[start:end])
            return
        self.fields[self._field] += data[start:end]
        if len(self.fields[self._field]) > FIELD:
            raise UserError(f"{self._field} is too long.")

    def _end(self) -> None:
        self.ended = True


async def receive(content_type: str, body: AsyncIterator[bytes], upload: Upload) -> None:
    """Fill `upload`; raises `UserError` for a body that is no form with a file."""
    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise UserError("an upload is multipart/form-data with a 'file' and a 'purpose'.")
    parser = MultipartParser(boundary, upload.callbacks())
    try:
        async for chunk in body:
            await run_in_threadpool(parser.write, chunk)
        parser.finalize()
    except ValueError as error:  # the parser's own errors are of this kind
        raise UserError(f"the upload is no sound form ({error}).") from error
    if not upload.ended or upload.part is None:
        raise UserError("the upload ended early, or held no 'file'.")
