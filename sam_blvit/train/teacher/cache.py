"""Cache a teacher's image embeddings: computed once, and read by any number of runs on the same photographs.

At 1024 px an embedding takes 2 MiB, and 2 % of SA-1B takes 437 GiB. If started again, only missing shards are written.
With torchrun the processes divide the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from sam_blvit.config import CacheConfig, ModelConfig, model_config
from sam_blvit.data.samples import Damaged, Sample, TrainingSamples
from sam_blvit.data.sources import MAX_BAD_SHARE, Source, training_source
from sam_blvit.system.distributed import Processes, joined_processes, pick_device
from sam_blvit.system.files import check_inputs_stay, file_sha256, output_directory
from sam_blvit.train.batches import Batch, batches_of
from sam_blvit.train.precision import with_precision
from sam_blvit.train.teacher.embeddings import HEADER_FILE, IDS_FILE, EmbeddingWriter, Header, ids_sha256
from sam_blvit.train.teacher.targets import LiveTeacher, is_exported, load_teacher, teacher_model, teacher_size

EXPORTED_PRECISION = "as exported"
"""Precision in the header for an exported teacher, whose graph fixes its dtypes."""


def cache_teacher(config: CacheConfig) -> Path:
    """Write the embeddings of all photographs of `config`.

    Returns:
        The directory, a value for `teacher_cache`.

    Raises:
        ValueError: If the directory contains another cache, the disk is too small, or more than one photograph in a
            thousand is damaged.
    """
    config = replace(config, machine=with_precision(config.machine))
    data, teacher = config.data, config.teacher
    inputs = [teacher.teacher, teacher.teacher_decoder, data.annotations, data.manifest, data.exclude]
    check_inputs_stay((config.output / name for name in (HEADER_FILE, IDS_FILE)), inputs)
    with joined_processes() as processes:
        source = training_source(data)
        writer = EmbeddingWriter(output_directory(config.output), _header(config, source))
        if processes.first:
            writer.begin(source.image_ids)
        processes.wait()
        missing = writer.missing()
        processes.wait()  # no process writes before all have listed the missing shards
        if missing:
            _write(config, source, writer, missing[processes.rank :: processes.count], processes)
        processes.wait()
        damaged = _check_damaged(writer)
        if processes.first:
            print(f"{config.output}: {len(source) - len(damaged)} embeddings, damaged photographs: {len(damaged)}")
            for image_id, reason in damaged.items():
                print(f"damaged, left out: {image_id} ({reason})")
    return config.output


def _header(config: CacheConfig, source: Source) -> Header:
    teacher, student = config.teacher.required(), _student(config)
    return Header(
        teacher_sha256=file_sha256(teacher),
        teacher_model=teacher_model(config),
        image_size=teacher_size(config, student),
        student_image_size=student.image_size,
        grid=student.embedding_grid,
        precision=EXPORTED_PRECISION if is_exported(teacher) else config.machine.precision,
        images=len(source),
        ids_sha256=ids_sha256(source.image_ids),
        shard_images=config.shard_images,
        mirrored=config.mirrored,
    )


def _student(config: CacheConfig) -> ModelConfig:
    """Return the model that the embeddings are for."""
    size = config.student.image_size
    return model_config(config.student.model, **({"image_size": size} if size else {}))


def _write(
    config: CacheConfig, source: Source, writer: EmbeddingWriter, shards: list[int], processes: Processes
) -> None:
    """Compute and write `shards`. The next photographs are loaded while the teacher runs."""
    sam = load_teacher(config, _student(config)).to(pick_device(config.machine.device))
    teacher = LiveTeacher(sam, precision=config.machine.precision)
    samples = TrainingSamples(
        source,
        image_size=writer.header.image_size,
        mask_side=1,
        masks_per_image=0,
        mirrored=float(config.mirrored),
        seed=config.data.seed,
    )
    rows = [writer.header.rows(shard) for shard in shards]
    places = _places(rows, config.machine.batch_size)
    shown = tqdm(total=sum(map(len, rows)), desc="embeddings", unit="image", disable=None if processes.first else True)
    with shown, batches_of(samples, places, config.machine.workers) as batches:
        embeddings = _embeddings(teacher, batches, shown.update)
        for shard, of_shard in zip(shards, rows, strict=True):
            writer.write(shard, islice(embeddings, len(of_shard)))
            _check_damaged(writer)


def _places(shards: list[range], batch_size: int) -> list[list[tuple[int, int]]]:
    """Return (epoch, index) of the photographs of each batch, through `shards` in order."""
    places = [(0, index) for of_shard in shards for index in of_shard]
    return [places[first : first + batch_size] for first in range(0, len(places), batch_size)]


def _embeddings(
    teacher: LiveTeacher, batches: Iterator[Batch], seen: Callable[[], object]
) -> Iterator[Tensor | Damaged]:
    """Yield the embedding (256, G, G) of each photograph, or why it is damaged, after calling `seen`."""
    for batch in batches:
        samples = [item for item in batch if isinstance(item, Sample)]
        images = [sample.image.to(teacher.sam.device).float() for sample in samples]
        embeddings = iter(teacher.targets(images, samples).embedding.half().cpu()) if samples else iter(())
        for item in batch:
            seen()
            yield item if isinstance(item, Damaged) else next(embeddings)


def _check_damaged(writer: EmbeddingWriter) -> dict[int, str]:
    """Return the damaged photographs so far. Raises ValueError if there are too many."""
    damaged = writer.damaged()
    if len(damaged) > MAX_BAD_SHARE * writer.header.images:
        first, reason = next(iter(damaged.items()))
        raise ValueError(
            f"{len(damaged)} of {writer.header.images} photographs are damaged, first {first} ({reason}); exclude or "
            f"fix them, delete {writer.directory} and start again"
        )
    return damaged
