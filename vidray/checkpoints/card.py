"""The README.md of a checkpoint that vidray writes: what it is, and code that runs in its folder as it stands."""

from __future__ import annotations

import json

from vidray.checkpoints.checkpoint import CheckpointMeta
from vidray.models.families import find_family

_READ = """with av.open("video.mp4") as video:
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
"""

_PIPELINE = """import av
import numpy as np
{import_vidray}from transformers import pipeline

{read}
classify = pipeline("video-classification", model=".")
print(classify(frames, num_frames={num_frames}))
```
Transformers itself reads video files with torchcodec only: where that runs (`pip install torchcodec`, and FFmpeg's
shared libraries), `classify("video.mp4", num_frames={num_frames})` does the same."""

_MODEL = """import av
import numpy as np
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

{read}
model, processor = AutoModelForVideoClassification.from_pretrained("."), AutoVideoProcessor.from_pretrained(".")
inputs = processor(frames, num_frames={num_frames}, do_sample_frames=True, return_tensors="pt")
scores = model(**inputs).logits[0, 0].softmax(-1).tolist()
print([{{"score": score, "label": model.config.id2label[i]}} for i, score in enumerate(scores)])
```
Transformers' pipeline cannot score it: the logits have a dimension too many."""


def model_card(meta: CheckpointMeta, *, title: str, text: str, base_model: str | None = None) -> str:
    """README.md in the Hub's format. ``text``: what the reader must know before using it."""
    base = "" if base_model is None else f"base_model: {json.dumps(base_model, ensure_ascii=False)}\n"
    labels = "\n".join(f"- {label}" for label in meta.labels)
    return f"""---
library_name: transformers
pipeline_tag: video-classification
{base}tags: [video-classification, vidray]
---
# {title}

{text}

## Use
In this folder; elsewhere write its place instead of `.`:

    vidray score --model . --source s3://bucket/videos --output s3://bucket/scores

The same with Transformers, for one view of a whole video (`--views 1x1 --span full`) of at least
{meta.view.num_frames} frames:
```python
{_python(meta)}

## Labels
{labels}
"""


def _python(meta: CheckpointMeta) -> str:
    """A block that needs no library to read videos but PyAV, which the pipeline needs anyway; and what follows it."""
    family = find_family(meta.family)
    ours = family.module.startswith("vidray.")
    return (_MODEL if family.logits_have_time else _PIPELINE).format(
        import_vidray="import vidray  # else Transformers does not know the model\n" if ours else "",
        read=_READ,
        num_frames=meta.view.num_frames,
    )
