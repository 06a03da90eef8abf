"""Media that records name: found, allowed or refused, read and decoded; a failure is a RecordError of that record.

Local media may lie below the dataset's folders (and prompt.media_roots), symlinks resolved; remote ones are read only
where prompt.allow_remote_media says so. Nothing lazy leaves this module: an image is decoded when it is returned.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import posixpath
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.inputs.roots import roots_of
from tasks.prompts.placement import MAX_PIXELS, Kind
from tasks.records import RecordError
from tasks.storage import is_remote, open_input

if TYPE_CHECKING:
    from PIL import Image

# A side of one pixel: a tracking dot or what a failed download left. It would be scaled up to a plain area.
MIN_SIDE = 2
MAX_BYTES: dict[Kind, int] = {"image": 256 << 20, "video": 2 << 30}
HTTP_TIMEOUT = 30.0  # seconds without a byte
HTTP_TRIES = 3
# Pillow reads these by running another program on the file.
REFUSED_FORMATS = {"EPS"}

ALLOWED_REMOTE = ("http://", "https://", "s3://")

Content = Path | bytes
"""A local file, or the bytes themselves."""


class MediaReader:
    """Finds media. `dataset_roots` and `media_roots` are folders, local or remote; a relative name is of those of the
    former that its record's file is in, the nearest first."""

    def __init__(self, dataset_roots: list[str], media_roots: list[str], allow_remote: bool) -> None:
        from PIL import Image

        Image.init()
        self._formats = [name for name in Image.OPEN if name not in REFUSED_FORMATS]
        self._dataset_roots = dataset_roots
        every = [*dataset_roots, *media_roots]
        self._local_roots = [_local(root).resolve() for root in every if not is_remote(root)]
        self._remote_roots = [root.rstrip("/") for root in every if is_remote(root)]
        self._allow_remote = allow_remote

    def find(self, source: Any, kind: Kind, where: str) -> Content:
        """The medium's file or bytes.

        `source` is a path, file://, http(s):// or s3:// URL, data URI, bytes, or {"bytes", "path"}. Raises RecordError:
        image_not_found, image_broken, image_too_large (video_… likewise), media_outside_dataset, media_unreachable,
        remote_media_not_allowed, malformed_record.
        """
        if isinstance(source, dict):
            if isinstance(source.get("bytes"), str):  # JSON has no bytes
                return _from_base64(source["bytes"], kind, where)
            source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if isinstance(source, bytes):
            return source
        if not isinstance(source, str) or not source:
            raise RecordError("malformed_record", f"{where}: {kind} must be a path, URL or bytes, got {_short(source)}")
        if source.startswith("data:"):
            return _from_data_uri(source, kind, where)
        if is_remote(source):
            return self._remote(source, kind, where)
        return self._local(source, kind, where)

    def image(self, content: Content, name: str, where: str) -> Image.Image:
        """The decoded image, in its own mode. Raises RecordError: image_broken, image_too_large, image_too_small."""
        from PIL import Image, UnidentifiedImageError

        file = content if isinstance(content, Path) else io.BytesIO(content)
        try:
            with Image.open(file, formats=self._formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(name, where, image.width * image.height)
                if min(image.size) < MIN_SIDE:
                    raise _too_small(name, where, image.size)
                image.load()
                return _eight_bits(image.copy())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise RecordError("image_too_large", f"{where}: image {name}: {error}") from error
        except RecordError:
            raise
        except Exception as error:  # a codec may raise anything on a broken file
            why = "no image, or of an unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
            raise RecordError("image_broken", f"{where}: image {name} cannot be decoded: {why}") from error

    def _local(self, source: str, kind: Kind, where: str) -> Content:
        named = _local(source)
        roots = roots_of(where, self._dataset_roots)
        remote = [root for root in roots if is_remote(root)]
        if remote and not named.is_absolute():
            return self._stored([posixpath.join(root, source) for root in remote], kind, where)
        candidates = [named] if named.is_absolute() else [_local(root) / named for root in roots]
        try:
            paths = [candidate.resolve() for candidate in candidates]
            for path in paths:
                self._require_inside(path, source, kind, where)
                if path.is_file():
                    return path
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a loop
            raise _not_found(source, kind, where, str(error)[:200]) from error
        places = ", ".join(str(path) for path in paths) or "the dataset's folder"
        raise _not_found(source, kind, where, f"no such file: {places[:500]}")

    def _stored(self, urls: list[str], kind: Kind, where: str) -> bytes:
        """The first of these objects that is there."""
        for url in urls[:-1]:
            try:
                return self._remote(url, kind, where)
            except RecordError as error:
                if not error.kind.endswith("_not_found"):
                    raise
        return self._remote(urls[-1], kind, where)

    def _require_inside(self, path: Path, source: str, kind: Kind, where: str) -> None:
        if not any(path.is_relative_to(root) for root in self._local_roots):
            message = (
                f"{where}: {kind} {_short(source)} lies outside the dataset's folder: "
                "add its folder to prompt.media_roots if that is meant, and set output.retry_errors"
            )
            raise RecordError("media_outside_dataset", message)

    def _remote(self, url: str, kind: Kind, where: str) -> bytes:
        stored = _normal(url)
        is_own = any(stored.startswith(f"{root}/") for root in self._remote_roots)
        if not is_own and not self._allow_remote:
            message = (
                f"{where}: {kind} {_short(url)} is remote: set prompt.allow_remote_media to let records name URLs, "
                "and output.retry_errors"
            )
            raise RecordError("remote_media_not_allowed", message)
        if not is_own and not url.startswith(ALLOWED_REMOTE):
            message = f"{where}: {kind} {_short(url)} is neither a path nor one of {', '.join(ALLOWED_REMOTE)}"
            raise RecordError("malformed_record", message)
        if url.startswith(("http://", "https://")):
            return _download(url, kind, where)
        return _from_store(stored, kind, where)


def describe(source: Any) -> str:
    """A medium's name for messages: short, and never its bytes."""
    if isinstance(source, dict):
        return describe(source.get("path") or b"")
    if isinstance(source, str) and not source.startswith("data:"):
        return _short(source)
    return "(given as bytes)"


def _local(path: str) -> Path:
    if path.startswith("file://"):
        path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
    return Path(path).expanduser() if path.startswith("~") else Path(path)


def _from_data_uri(uri: str, kind: Kind, where: str) -> bytes:
    header, _, data = uri.partition(",")
    if header.lower().endswith(";base64"):
        return _from_base64(urllib.parse.unquote(data), kind, where)
    return urllib.parse.unquote_to_bytes(data)


def _from_base64(text: str, kind: Kind, where: str) -> bytes:
    """Lines of base64, as MIME has them, are one."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{kind}_broken", f"{where}: {kind} given as base64 is no base64: {error}") from error


def _normal(url: str) -> str:
    """Without `.` and `..`, which name no folder in a store; `//` does."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{posixpath.normpath(rest)}" if {".", ".."} & set(rest.split("/")) else url


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits scaled down to them: all that is brighter than 255 would else become white."""
    if image.mode == "F" or image.mode.startswith("I"):
        low, high = cast("tuple[float, float]", image.getextrema())
        if image.mode == "F" and low >= 0 and high <= 1:
            return image.point(lambda value: value * 255).convert("L")
        if low >= 0 and 255 < high < 65536:
            return image.convert("I").point(lambda value: value / 256).convert("L")
    return image


def _download(url: str, kind: Kind, where: str) -> bytes:
    quoted = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~-._")
    for left in reversed(range(HTTP_TRIES)):
        try:
            with urllib.request.urlopen(quoted, timeout=HTTP_TIMEOUT) as response:  # noqa: S310 (http and https only)
                return _limited(_whole(response, MAX_BYTES[kind] + 1), url, kind, where)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise _not_found(url, kind, where, f"the server answers {error.code}") from error
            if not left or (error.code not in (408, 429) and error.code < 500):
                raise _unreachable(url, kind, where, error) from error
        # URLError, timeouts, resets, half an answer, a URL that is none
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not left or isinstance(error, ValueError):
                raise _unreachable(url, kind, where, error) from error
        time.sleep(2.0 ** (HTTP_TRIES - left) / 4)
    raise AssertionError("unreachable")


def _whole(response: Any, most: int) -> bytes:
    """Raises OSError for a body that ends before its announced length."""
    data: bytes = response.read(most)
    length = response.headers.get("Content-Length") or ""
    if length.isdigit() and len(data) < min(int(length), most):
        raise OSError(f"it ended after {len(data)} of {length} bytes")
    return data


def _from_store(url: str, kind: Kind, where: str) -> bytes:
    try:
        with open_input(url) as file:
            return _limited(file.read(MAX_BYTES[kind] + 1), url, kind, where)
    except RecordError:
        raise
    except FileNotFoundError as error:
        raise _not_found(url, kind, where, "no such object") from error
    except Exception as error:  # each store's client has errors of its own
        raise _unreachable(url, kind, where, error) from error


def _limited(data: bytes, url: str, kind: Kind, where: str) -> bytes:
    if len(data) > MAX_BYTES[kind]:
        raise RecordError(f"{kind}_too_large", f"{where}: {kind} {_short(url)} has over {MAX_BYTES[kind] >> 20} MiB")
    return data


def _too_large(name: str, where: str, pixels: int) -> RecordError:
    message = (
        f"{where}: image {name} has {pixels / 1e6:.0f} megapixels, more than {MAX_PIXELS / 1e6:.0f}: scale it down"
    )
    return RecordError("image_too_large", message)


def _too_small(name: str, where: str, size: tuple[int, int]) -> RecordError:
    message = f"{where}: image {name} has {size[0]} x {size[1]} pixels: there is nothing to see"
    return RecordError("image_too_small", message)


def _not_found(source: str, kind: Kind, where: str, why: str) -> RecordError:
    return RecordError(f"{kind}_not_found", f"{where}: {kind} {_short(source)} not found: {why}")


def _unreachable(url: str, kind: Kind, where: str, error: Exception) -> RecordError:
    return RecordError("media_unreachable", f"{where}: {kind} {_short(url)} cannot be fetched: {error}")


def _short(source: Any) -> str:
    text = source if isinstance(source, str) else repr(source)
    return text if len(text) <= 200 else f"{text[:200]}…"
