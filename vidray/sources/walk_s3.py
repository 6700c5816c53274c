"""Pages through an S3 bucket with many requests at once, whatever its keys look like.

S3 lists keys in order, 1,000 per page, and only a page says where the next one starts: a million objects would be a
thousand requests one after the other. But a listing may start after *any* string. So while threads are idle, a walk
over the keys in (low, high] hands the upper range, (middle, high], to another thread. The guess of the middle need not
be good; an empty range costs one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidray.errors import RunError
from vidray.sources.walk import Walk
from vidray.storage.location import split_bucket
from vidray.storage.retry import with_retries
from vidray.storage.versions import etag_of

_LAST_CHAR = 0x7F
"""Guesses stay within ASCII: any valid string will do, and most names are ASCII."""


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Walk(Walk):
    """The listing of one folder of a bucket."""

    keys_per_page: int = 1000
    """At most; S3 itself allows no more than 1,000."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return split_bucket(self.folder.path)[0]

    @property
    def folder_key(self) -> str:
        """The key up to and with its last slash; the walk's relative paths start after it."""
        key = split_bucket(self.folder.path)[1]
        return f"{key}/" if key else ""

    @property
    def prefix(self) -> str:
        """What all listed keys start with."""
        return self.folder_key + self.name_start

    def start(self) -> None:
        if self.bucket.endswith("--x-s3"):  # S3 Express lists in no order and cannot start after a key
            self.tasks.spawn(self._walk_in_turn)
        else:
            self.tasks.spawn(self._walk_range, "", None)

    def _walk_range(self, low: str, high: str | None) -> None:
        """Lists the keys above ``low`` up to and with ``high`` (None: to the end), giving ranges away."""
        while True:
            page = self._page(StartAfter=low) if low else self._page()
            objects = page.get("Contents", [])
            keys = [entry["Key"] for entry in objects]
            if not _are_ascending(low, keys):
                if low:
                    raise RunError(
                        f"s3://{self.bucket} does not list its keys in order, so they cannot be listed safely"
                    )
                return self._walk_in_turn()
            self._add(objects if high is None else [entry for entry in objects if entry["Key"] <= high])
            if not page.get("IsTruncated") or (high is not None and keys[-1] >= high):
                return None
            low = keys[-1]
            high = self._give_away(low, high)

    def _give_away(self, low: str, high: str | None) -> str | None:
        """Spawns walks over upper ranges of (low, high], one per idle thread; returns the new ``high``."""
        for _ in range(self.tasks.num_idle):
            middle = middle_key(low, high, common=len(self.prefix))
            if middle is None:
                break
            self.tasks.spawn(self._walk_range, middle, high)
            high = middle
        return high

    def _walk_in_turn(self) -> None:
        """Lists page after page, for stores that cannot start after a key."""
        page = self._page()
        self._add(page.get("Contents", []))
        while page.get("IsTruncated"):
            page = self._page(ContinuationToken=page["NextContinuationToken"])
            self._add(page.get("Contents", []))

    def _page(self, **where: str) -> dict[str, Any]:
        self.tasks.check()
        options = {"Bucket": self.bucket, "Prefix": self.prefix, "MaxKeys": self.keys_per_page, **where}
        return with_retries(lambda: self.folder.fs.call_s3("list_objects_v2", **options), what=self.folder.uri)

    def _add(self, objects: list[dict[str, Any]]) -> None:
        start = len(self.folder_key)
        files = [entry for entry in objects if not entry["Key"].endswith("/")]  # others mark empty folders
        kept = []
        for entry in files:
            name = entry["Key"][start:]
            if self.keep.keeps(name):
                kept.append(entry)
            else:
                self.rows.skip([self.keep.kind_left(name)])
        root = f"{self.folder.root}{self.bucket}/"
        self.rows.add([root + entry["Key"] for entry in kept], [(entry["Size"], etag_of(entry)) for entry in kept])


def _are_ascending(low: str, keys: list[str]) -> bool:
    """True if the keys come as S3 promises: above ``low``, each above the one before, by their UTF-8 bytes.

    Python compares strings by code points, which is the same order.
    """
    return all(before < after for before, after in zip([low, *keys], keys, strict=False))


def middle_key(low: str, high: str | None, *, common: int) -> str | None:
    """A string between two keys, about in the middle, or None if none is easy to find.

    Args:
        low: a key.
        high: a greater string; None stands for the end of all keys that share ``low[:common]``.
        common: how many characters all keys share.
    """
    at, top = common, _LAST_CHAR
    if high is not None:
        while at < len(low) and low[at] == high[at]:
            at += 1
        top = min(ord(high[at]), _LAST_CHAR)
    while at < len(low):
        bottom = ord(low[at])
        if bottom + 1 < top:
            return low[:at] + chr((bottom + top + 1) // 2)
        at, top = at + 1, _LAST_CHAR
    return low + chr((0x20 + top) // 2) if top > 0x22 else None
