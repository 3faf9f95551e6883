"""Which phase needs which, what of the configuration each depends on, and whether it has been done with it.

A phase's fingerprint is a hash of its own configuration groups and of those of the phases it needs. It is written to
FOLDER/phase.json when the phase starts and marked done when it ends, so that a run can be killed and continued, and a
changed configuration is noticed: what was made with another one is moved aside, never mixed. The record's `result`
stands for what the phase made, `inputs` for what the phases it needs had made: with other recordings in the corpus the
same configuration is not the same run.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import importlib
import json
import os
from pathlib import Path
import shutil

from ml_collections import ConfigDict

from jaxmoe.data.corpora import CORPORA


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase: its module in jaxmoe.phases, the folder it fills, the phases it needs, the config groups it reads.

    `wanted` names the fields ("cascade.steps") that turn an optional phase on: while one of them is 0, False or "",
    `all` leaves the phase out and the phases that need it do without. An `incremental` phase finds out by itself what
    it has to make again: it is always run and its folder is left to it; what it returns tells the phases after it
    whether it changed.
    """

    folder: str
    needs: tuple[str, ...]
    groups: tuple[str, ...]
    wanted: tuple[str, ...] = ()
    incremental: bool = False

    def run(self, name: str) -> Callable[[ConfigDict, Path], str | None]:
        return importlib.import_module(f"jaxmoe.phases.{name}").run

    def news(self, name: str) -> Callable[[ConfigDict, Path], str]:
        """What has happened to a done phase's sources since, for people; nothing, of most."""
        return getattr(importlib.import_module(f"jaxmoe.phases.{name}"), "news", lambda config, workdir: "")


PHASES: dict[str, Phase] = {
    "prepare": Phase("corpus", (), ("seed", "data", "quality", *CORPORA)),
    "references": Phase("references", ("prepare",), ("references", "mt"), wanted=("references.engine",)),
    "customize": Phase("custom", ("prepare",), ("custom",), wanted=("custom.enabled",)),
    "embed": Phase("embeddings", ("prepare",), ("model.backbone", "embed")),
    "cluster": Phase("clusters", ("embed",), ("cluster", "model.num_experts")),
    "gate": Phase("gate", ("cluster",), ("gate", "model", "reweight"), wanted=("gate.steps",)),
    "experts": Phase("experts", ("gate",), ("experts",), wanted=("experts.steps",)),
    "joint": Phase("joint", ("experts",), ("joint",), wanted=("joint.steps",)),
    "encoder": Phase("encoder", ("joint",), ("encoder",), wanted=("encoder.steps", "joint.steps")),
    "personalize": Phase(
        "personalize",
        ("joint", "encoder"),
        ("personalize", "evaluate.beam_size"),
        wanted=("personalize.shots", "joint.steps"),
    ),
    "baseline": Phase("baseline", ("embed",), ("baseline", "model", "reweight"), wanted=("baseline.steps",)),
    "mt": Phase("mt", ("prepare", "references"), ("mt_tuning", "mt.model"), wanted=("mt_tuning.steps",)),
    "cascade": Phase(
        "cascade", ("joint", "encoder", "references"), ("cascade", "mt"), wanted=("cascade.steps", "joint.steps")
    ),
    "salmonn": Phase("salmonn", ("embed", "references"), ("salmonn", "model.dtype"), wanted=("salmonn.steps",)),
    "evaluate": Phase(
        "eval",
        ("joint", "encoder", "baseline", "salmonn", "references", "customize", "mt", "cascade"),
        ("evaluate", "mt", "model.second"),
        incremental=True,
    ),
    "stress": Phase("stress", ("evaluate",), ("stress",), wanted=("stress.systems",), incremental=True),
    "report": Phase("report", ("evaluate", "stress", "personalize"), ("report",)),
}


# On what is trained, or translated: a budget can be raised and the run go on.
WITHOUT_EFFECT = {"num_workers", "log_every", "second", "max_chars", "acknowledge_privacy"}


def _value(config: ConfigDict, group: str) -> object:
    value = config
    for name in group.split("."):
        if name not in value:
            raise ValueError(f"the configuration has no field {group}; copy it from configs/quickstart.py.")
        value = value[name]
    if not isinstance(value, ConfigDict):
        return value
    return {k: v for k, v in value.to_dict().items() if k not in WITHOUT_EFFECT}


def is_wanted(config: ConfigDict, name: str) -> bool:
    """Whether the configuration asks for the phase; those that are not optional always are."""
    return not _turned_off(config, name)


def _turned_off(config: ConfigDict, name: str) -> str:
    """The field that turns an optional phase off, "" if none does."""
    return next((field for field in PHASES[name].wanted if not _value(config, field)), "")


def needs(config: ConfigDict, name: str) -> list[str]:
    """The phases that must have been done before."""
    return [need for need in PHASES[name].needs if is_wanted(config, need)]


def settings(config: ConfigDict, name: str) -> dict[str, object]:
    """All that the result of a phase depends on: group -> value, with those of the phases it needs."""
    phase = PHASES[name]
    out: dict[str, object] = {}
    for need in needs(config, name):
        out.update(settings(config, need))
    return out | {group: _value(config, group) for group in phase.groups}


def fingerprint(config: ConfigDict, name: str) -> str:
    """16 hexadecimal digits."""
    text = json.dumps(settings(config, name), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _record(workdir: Path, name: str) -> dict:
    path = workdir / PHASES[name].folder / "phase.json"
    return json.loads(path.read_text()) if path.exists() else {}


def is_done(config: ConfigDict, workdir: Path, name: str) -> bool:
    """Whether the phase has ended with this configuration and with what the phases it needs hold now."""
    record = _record(workdir, name)
    return bool(record.get("done")) and not _is_other(config, workdir, name, record)


def _is_other(config: ConfigDict, workdir: Path, name: str, record: dict) -> bool:
    """Whether a record is of another configuration, or of other results of the phases that are needed."""
    inputs = record.get("inputs", {})
    # Of a need whose result was not recorded then, nothing is known, and nothing is made again for it.
    changed = any(inputs.get(need, result) != result for need, result in _inputs(config, workdir, name).items())
    return changed or record.get("fingerprint") != fingerprint(config, name)


def _inputs(config: ConfigDict, workdir: Path, name: str) -> dict[str, str]:
    """What the phases that this one needs have made."""
    results = {need: _record(workdir, need).get("result") for need in needs(config, name)}
    return {need: result for need, result in results.items() if result}


def check(config: ConfigDict, workdir: Path, name: str) -> None:
    """Whether a phase, or "all", can begin.

    Raises:
      FileNotFoundError: if a phase it needs has not been done, naming it.
      ValueError: if that was done with another configuration, naming what differs; if the configuration turns the phase
        off or lacks a field.
    """
    if name == "all":
        for wanted in PHASES:
            if is_wanted(config, wanted):
                settings(config, wanted)
        return
    if field := _turned_off(config, name):
        value = _value(config, field)
        raise ValueError(f"config.{field}={value!r} turns --phase={name} off; give --config.{field}=...")
    for need in needs(config, name):
        record = _record(workdir, need)
        if not record.get("done"):
            raise FileNotFoundError(
                f"--phase={name} needs --phase={need}, which has not been done in {workdir}; "
                f"run it first, or --phase=all for everything."
            )
        if not is_done(config, workdir, need):
            other = _changes(record, settings(config, need)) or "made from other recordings"
            raise ValueError(
                f"--phase={name} needs --phase={need}, but what {workdir} has of it is another: {other}; give the same "
                f"settings again, or run --phase={need} first, or --phase=all for everything."
            )


def _write(folder: Path, record: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "phase.json.tmp"
    temporary.write_text(json.dumps(record, indent=2, default=str))
    os.replace(temporary, folder / "phase.json")


def run(config: ConfigDict, workdir: Path, name: str, force: bool = False) -> None:
    """Runs one phase, continuing what an earlier, killed run with the same configuration left.

    Raises: as `check` does.
    """
    check(config, workdir, name)
    folder = workdir / PHASES[name].folder
    incremental = PHASES[name].incremental
    if is_done(config, workdir, name) and not force and not incremental:
        print(f"{name}: done already with this configuration ({folder}); --force runs it again")
        _tell_news(config, workdir, name)
        return
    record = _record(workdir, name)
    if record and (force or (not incremental and _is_other(config, workdir, name, record))):
        aside = folder.with_name(folder.name + ".previous")
        why = _changes(record, settings(config, name)) or ("--force" if force else "what it is made from has changed")
        print(f"{name}: {why}; what was there is moved to {aside}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    mine, inputs = fingerprint(config, name), _inputs(config, workdir, name)
    record = {"phase": name, "fingerprint": mine, "settings": settings(config, name), "inputs": inputs, "done": False}
    _write(folder, record)
    result = PHASES[name].run(name)(config, workdir)
    if result is None and inputs:
        result = hashlib.sha256(json.dumps([mine, inputs], sort_keys=True).encode()).hexdigest()[:16]
    _write(folder, record | {"done": True, "result": result})


def _tell_news(config: ConfigDict, workdir: Path, name: str) -> None:
    if news := PHASES[name].news(name)(config, workdir):
        print(f"{name}: {news}")


def _changes(record: dict, now: dict[str, object]) -> str:
    """What differs between a recorded phase's settings and today's, for people; "" for nothing."""

    def flat(tree: object, prefix: str) -> dict[str, object]:
        if isinstance(tree, dict):
            return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}").items()}
        return {prefix: tree}

    now = json.loads(json.dumps(now, default=str))
    old, new = flat(record["settings"], "config"), flat(now, "config")
    changed = [f"{k} {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    return "changed: " + ", ".join(changed) if changed else ""


def run_all(config: ConfigDict, workdir: Path, force: bool = False) -> None:
    """Runs what is missing, in order; says what is skipped and why."""
    check(config, workdir, "all")  # what is missing is an error now, not in an hour
    for number, name in enumerate(PHASES, 1):
        if field := _turned_off(config, name):
            print(f"[{number}/{len(PHASES)}] {name}: skipped, config.{field} turns it off")
            continue
        if is_done(config, workdir, name) and not force and not PHASES[name].incremental:
            print(f"[{number}/{len(PHASES)}] {name}: skipped, done already with this configuration")
            _tell_news(config, workdir, name)
            continue
        print(f"[{number}/{len(PHASES)}] {name}")
        run(config, workdir, name, force)
