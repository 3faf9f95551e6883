"""Customisations as a DeepL account holds them: uploaded once for each content, found again, deleted when stale.

    python -m jaxmoe.mt.assets list        what of the account's glossaries, style rules and memories is ours
    python -m jaxmoe.mt.assets delete      deletes it

The name of each carries a hash of its content: what is there is not uploaded again, and what has our name and another
hash is stale. Ours is what begins with PREFIX and the name of the run.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
from pathlib import Path
import sys
from typing import Any

from jaxmoe import mt
from jaxmoe.mt import RequestError, Translator, TranslatorUnavailable, custom
from jaxmoe.mt.account import Account
from jaxmoe.mt.custom import Customisation, to_tmx

PREFIX = "jaxmoe"
PAGE = 25  # DeepL's largest
IMPORT_TIMEOUT_S = 600

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Asset:
    """Something that the account keeps. kind: glossary, style or memory."""

    kind: str
    id: str
    name: str


def assets(account: Account) -> list[Asset]:
    """All that the account holds. Raises: RequestError."""
    client = account.client
    glossaries = account.ask(client.list_multilingual_glossaries)
    styles = _pages(account, client.get_all_style_rules)
    memories = _pages(account, client.list_translation_memories)
    return [
        *(Asset("glossary", x.glossary_id, x.name) for x in glossaries),
        *(Asset("style", x.style_id, x.name) for x in styles),
        *(Asset("memory", x.translation_memory_id, x.name) for x in memories),
    ]


def _pages(account: Account, get: Callable[..., list[Any]]) -> list[Any]:
    found: list[Any] = []
    for number in itertools.count():
        page = account.ask(functools.partial(get, page=number, page_size=PAGE))
        found += page
        if len(page) < PAGE:
            return found
    raise AssertionError("count does not end")


def delete(account: Account, asset: Asset) -> None:
    """Raises: RequestError."""
    client = account.client
    call = {
        "glossary": client.delete_multilingual_glossary,
        "style": client.delete_style_rule,
        "memory": client.delete_translation_memory,
    }[asset.kind]
    account.ask(lambda: call(asset.id))
    log.warning("DeepL: deleted %s %r.", asset.kind, asset.name)


def sync(account: Account, content: Customisation, run: str, *, memory_threshold: int) -> dict[str, Any]:
    """Bring the account to this content, delete the run's stale assets, and return the `custom` of deepl.DeepL.

    run: what the assets are named after. memory_threshold: per cent of a match at which the memory's German replaces
    DeepL's; 0 leaves the memory out.
    Raises:
        TranslatorUnavailable: the account's plan, or the server, does not offer what is asked for.
        RequestError: another failure; what was uploaded is found again.
    """
    contents = _contents(content, memory_threshold)
    named = {kind: f"{PREFIX} {run} {_digest(content)}" for kind, (content, _) in contents.items()}
    try:
        there = assets(account)
        new = [kind for kind in contents if not any((x.kind, x.name) == (kind, named[kind]) for x in there)]
        if new:
            size = sum(len(text) for pair in (*content.memory, *content.glossary.items()) for text in pair)
            log.warning(account.notice)
            log.warning(
                "DeepL: uploading %s, up to %s characters of the train split, not billed. DeepL keeps it until it is "
                "stale or `python -m jaxmoe.mt.assets delete` deletes it.",
                ", ".join(new),
                f"{size:,}",
            )
        for kind in new:
            account.ask(functools.partial(contents[kind][1], account.client, named[kind]))
        there = assets(account)
        used: dict[str, Asset] = {}
        for asset in there:
            if asset.name == named.get(asset.kind):
                used.setdefault(asset.kind, asset)
        for asset in there:
            if asset.name.startswith(f"{PREFIX} {run} ") and asset not in used.values():
                delete(account, asset)
    except RequestError as error:
        if error.passing:
            raise
        raise TranslatorUnavailable(f"DeepL cannot be customised: {error}") from None
    if missing := contents.keys() - used.keys():
        raise TranslatorUnavailable(f"DeepL does not list the {' and '.join(sorted(missing))} that it accepted.")
    return {"version": _version(content, memory_threshold), "request": _request(used, content, memory_threshold)}


def customised(workdir: Path, *, memory_threshold: int, **fields: Any) -> Translator:
    """DeepL with what phase `customize` made of a run's train split.

    fields: of config.mt, and cache_path; see mt.make.
    Raises:
        TranslatorUnavailable: nothing was made, DeepL cannot be used, or not be customised.
        ValueError: files are missing, or hold a sentence of validation or evaluation.
    """
    folder = workdir / "custom"
    if not folder.exists():
        raise TranslatorUnavailable("--phase=customize has not been run; config.custom.enabled=True turns it on")
    made = custom.read(folder)
    custom.check_leakage(made, custom.held_out(workdir), folder)
    account = Account(server_url="", acknowledge_privacy=fields["acknowledge_privacy"])
    synced = sync(account, made, workdir.resolve().name, memory_threshold=memory_threshold)
    return mt.make(**fields | {"engine": "deepl", "custom": synced})


def _request(used: dict[str, Asset], content: Customisation, memory_threshold: int) -> dict[str, Any]:
    """Arguments of translate_text."""
    arguments = {"glossary": "glossary", "style": "style_rule", "memory": "translation_memory"}
    request: dict[str, Any] = {arguments[kind]: asset.id for kind, asset in used.items()}
    if "memory" in used:
        request["translation_memory_threshold"] = memory_threshold
    if content.instructions:
        request["custom_instructions"] = content.instructions
    return request


def _version(content: Customisation, memory_threshold: int) -> str:
    """Of all that changes a translation, for the cache: not the ids, which an upload draws anew."""
    return f"{content.version}-memory{memory_threshold}"


def _contents(content: Customisation, memory_threshold: int) -> dict[str, tuple[Any, Callable[[Any, str], Any]]]:
    """kind -> (content, how it is uploaded under a name), for those that are not empty."""
    import deepl
    from deepl.api_data import MultilingualGlossaryDictionaryEntries

    def glossary(client: deepl.DeepLClient, name: str) -> None:
        entries = MultilingualGlossaryDictionaryEntries("EN", "DE", content.glossary)
        client.create_multilingual_glossary(name, [entries])

    def style(client: deepl.DeepLClient, name: str) -> None:
        client.create_style_rule(name, "de", content.rules)

    def memory(client: deepl.DeepLClient, name: str) -> None:
        tmx = to_tmx(content.memory)
        job = client.create_translation_memory_import("memory.tmx", len(tmx), display_name=name)
        client.upload_translation_memory_file(job, tmx)
        done = client.wait_until_translation_memory_job_done(job.job_id, IMPORT_TIMEOUT_S)
        if not done.ok:
            reason = done.result.error_message if done.result else None
            raise deepl.DeepLException(f"the import of the translation memory failed: {reason or 'no reason given'}")

    found: dict[str, tuple[Any, Callable[[Any, str], Any]]] = {}
    if content.glossary:
        found["glossary"] = (content.glossary, glossary)
    if content.rules:
        found["style"] = (content.rules, style)
    if content.memory and memory_threshold:
        found["memory"] = (content.memory, memory)
    return found


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def main(arguments: list[str]) -> None:
    """The command line."""
    if arguments not in (["list"], ["delete"]):
        sys.exit("usage: python -m jaxmoe.mt.assets list|delete")
    account = Account(server_url="", acknowledge_privacy=True)  # no text is sent
    ours = [asset for asset in assets(account) if asset.name.startswith(f"{PREFIX} ")]
    for asset in ours:
        print(f"{asset.kind:<9}{asset.id}  {asset.name}")
        if arguments == ["delete"]:
            delete(account, asset)
    print(f"{len(ours)} {'deleted' if arguments == ['delete'] else 'found'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, ValueError) as error:
        sys.exit(f"error: {error}")
