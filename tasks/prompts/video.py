"""Video decoding with PyAV, which brings its own FFmpeg: qwen_vl_utils' readers want one installed on the machine."""

from __future__ import annotations

import importlib
from typing import Any

from tasks.records import Json


def ensure_video_reader() -> None:
    """Make PyAV qwen_vl_utils' reader where torchcodec does not load, and its fallback in any case."""
    from qwen_vl_utils import vision_process

    vision_process.VIDEO_READER_BACKENDS["torchvision"] = read_video
    if not _torchcodec_loads():
        vision_process.VIDEO_READER_BACKENDS["torchcodec"] = read_video


def read_video(part: Json) -> tuple[Any, Json, float]:
    """Sampled frames (uint8 tensor, T C H W), metadata, and sampled frames a second: a qwen_vl_utils reader.

    Raises what PyAV raises for a broken file, ValueError for one with too few frames.
    """
    import numpy as np
    import torch
    from qwen_vl_utils import vision_process

    path = part["video"].removeprefix("file://")
    total, fps = _count_frames(path)
    start, end, count = vision_process.calculate_video_frame_range(part, total, fps)
    frames = vision_process.smart_nframes(part, total_frames=count, video_fps=fps)
    indices = torch.linspace(start, end, frames).round().long().tolist()
    video = torch.from_numpy(np.stack(_frames(path, indices))).permute(0, 3, 1, 2)
    metadata = {"fps": fps, "frames_indices": indices, "total_num_frames": count, "video_backend": "pyav"}
    return video, metadata, frames / max(count, 1e-6) * fps


def _count_frames(path: str) -> tuple[int, float]:
    """Frames and frames a second. Packets are counted: headers may say anything, and decoding costs more."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        total = sum(1 for packet in container.demux(stream) if packet.size)
        return total, float(stream.average_rate or stream.guessed_rate or 0)


def _frames(path: str, indices: list[int]) -> list[Any]:
    import av

    wanted, found = set(indices), {}
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= indices[-1]:
                break
    if not found:
        raise ValueError("no frame can be decoded")
    # A cut file holds fewer frames than packets promise; its last one stands for those.
    last = found[max(found)]
    return [found.get(index, last) for index in indices]


def _torchcodec_loads() -> bool:
    """Whether torchcodec finds FFmpeg, which it looks for at the first use; that use fails here in any case."""
    try:
        importlib.import_module("torchcodec.decoders").VideoDecoder(b"")
    except ImportError:
        return False
    except Exception as error:
        return "Could not load" not in str(error)
    return True
