"""What a status means and what to do about it: the table in docs/output.md, with the next step."""

from __future__ import annotations

from vidray.types import Status

ADVICE: dict[Status, str] = {
    Status.NOT_FOUND: "The object was gone. Nothing to do if it was deleted; it is tried again later and later.",
    Status.ACCESS_DENIED: "Give the job's role read access to it; --retry-failed then tries at once.",
    Status.FETCH_FAILED: "The store did not answer in time. It is tried again; raise --fetch-deadline-seconds.",
    Status.CHANGED: "It was overwritten meanwhile. The next run lists the new version.",
    Status.TOO_LARGE: "Raise the limit in the message, or leave it out. It is not tried again.",
    Status.UNSUPPORTED: "Convert it to a common format (ffmpeg), or leave it out. It is not tried again.",
    Status.NO_VIDEO: "It has sound only. Leave it out of the sources.",
    Status.CORRUPT: "Play it: if it is broken, upload it again. It is scored when the object changes.",
    Status.DECODE_TIMEOUT: "Raise --decode-timeout-seconds if such videos are wanted. It is tried every night.",
    Status.DECODER_CRASHED: "Its decoder died, which harmed nothing else. Re-encode it if it stays.",
    Status.OUT_OF_MEMORY: "Raise --decode-memory-bytes, or run fewer decoders on a machine.",
    Status.MODEL_ERROR: "See the message: the model raised, or gave no finite number.",
}
"""Of every status that is a failure."""
