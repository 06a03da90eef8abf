"""Video decoding with PyAV, which brings its own FFmpeg: qwen_vl_utils' readers want one installed on the machine.

Each frame is scaled down as it is decoded, to the size and by the function that qwen_vl_utils then finds it at and so
leaves it: the frames of a long video in their own size may fill the memory.
"""

from __future__ import annotations

import importlib
from typing import Any

from tasks.records import Json

FACTOR = "frame_factor"
"""Key of a part: the multiple, in pixels, that the model's frames have as sides. Without it nothing is scaled here."""
MAX_FRAME_PIXELS = 1024 * 1024 * 1024 // 4 // 3  # as of images


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
    import torch
    from qwen_vl_utils import vision_process

    path = part["video"].removeprefix("file://")
    total, fps = _count_frames(path)
    start, end, count = vision_process.calculate_video_frame_range(part, total, fps)
    frames = vision_process.smart_nframes(part, total_frames=count, video_fps=fps)
    indices = torch.linspace(start, end, frames).round().long().tolist()
    video = torch.stack(_frames(path, indices, part))
    metadata = {"fps": fps, "frames_indices": indices, "total_num_frames": count, "video_backend": "pyav"}
    return video, metadata, frames / max(count, 1e-6) * fps


def _count_frames(path: str) -> tuple[int, float]:
    """Frames and frames a second. Packets are counted: headers may say anything, and decoding costs more."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        total = sum(1 for packet in container.demux(stream) if packet.size)
        return total, float(stream.average_rate or stream.guessed_rate or 0)


def _frames(path: str, indices: list[int], part: Json) -> list[Any]:
    """The frames of these numbers (uint8 tensors, C H W), scaled."""
    import av

    wanted, found = set(indices), {}
    size: list[int] | None = None
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                size = size or _size(part, len(indices), frame.height, frame.width)
                found[number] = _scaled(frame, size)
            if number >= indices[-1]:
                break
    if not found:
        raise ValueError("no frame can be decoded")
    # A cut file holds fewer frames than packets promise; its last one stands for those.
    last = found[max(found)]
    return [found.get(index, last) for index in indices]


def _size(part: Json, count: int, height: int, width: int) -> list[int]:
    """Height and width that qwen_vl_utils.fetch_video gives the frames."""
    from qwen_vl_utils import vision_process as library

    if height * width > MAX_FRAME_PIXELS:
        raise ValueError(f"its frames have {width} x {height} pixels, more than {MAX_FRAME_PIXELS / 1e6:.0f} million")
    factor = part.get(FACTOR)
    if factor is None:
        return [height, width]
    if "resized_height" in part and "resized_width" in part:
        return list(library.smart_resize(part["resized_height"], part["resized_width"], factor))
    least = part.get("min_pixels", library.VIDEO_MIN_TOKEN_NUM * factor**2)
    total = part.get("total_pixels", library.MODEL_SEQ_LEN * factor**2 * 0.9)
    most = max(min(library.VIDEO_MAX_TOKEN_NUM * factor**2, total / count * library.FRAME_FACTOR), int(least * 1.05))
    return list(library.smart_resize(height, width, factor, least, min(part.get("max_pixels", most), most)))


def _scaled(frame: Any, size: list[int]) -> Any:
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)


def _torchcodec_loads() -> bool:
    """Whether torchcodec finds FFmpeg, which it looks for at the first use; that use fails here in any case."""
    try:
        importlib.import_module("torchcodec.decoders").VideoDecoder(b"")
    except ImportError:
        return False
    except Exception as error:
        return "Could not load" not in str(error)
    return True
