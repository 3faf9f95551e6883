"""A prepared corpus of given rows, one shard a split, as `prepare` stores it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
import tensorflow_datasets as tfds

from jaxmoe.data import build, prepared


def write(folder: Path, splits: Mapping[str, Iterable[prepared.Row]]) -> None:
    """Stores rows in `folder`, a run's corpus."""
    builder = build.builder_class()(data_dir=str(folder), file_format="array_record")
    place = Path(builder.data_path)
    place.mkdir(parents=True)
    infos = []
    for split, rows in splits.items():
        template = builder._get_filename_template(split_name=split)
        writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
        with open(prepared.metadata_file(folder, split), "w", encoding="utf-8") as metadata:
            records = []
            for row in rows:
                records.append(build.serialise(row))
                writer.write(records[-1])
                build.write_line(metadata, build.metadata_row(row))
        writer.close()
        sizes = dict(shard_lengths=[len(records)], num_bytes=sum(map(len, records)))
        infos.append(tfds.core.SplitInfo(name=split, filename_template=template, **sizes))
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.write_to_directory(place)
