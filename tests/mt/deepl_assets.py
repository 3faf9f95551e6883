"""Glossaries, style rules and translation memories of the DeepL for tests: the v3 endpoints."""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit
import uuid
import xml.etree.ElementTree as ET

NOW = "2026-01-01T00:00:00.000000Z"
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
Answer = tuple[int, Any]


class Assets:
    """What the account keeps, by id; `refuse` names a kind that its plan does not have."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, dict[str, Any]]] = {
            "glossaries": {},
            "style_rules": {},
            "translation_memories": {},
        }
        self.imports: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []  # "POST glossaries"
        self.refuse = ""

    def answer(self, host: str, method: str, path: str, body: dict[str, Any]) -> Answer:
        """Status and JSON of one request."""
        parts = urlsplit(path)
        found = re.fullmatch(r"/v3/(glossaries|style_rules|translation_memories)(?:/(.+))?", parts.path)
        if not found:
            return 404, {"message": "not found"}
        kind, rest = found[1], found[2] or ""
        self.calls.append(f"{method} {kind}")
        if kind == self.refuse and method == "POST":
            return 403, {"message": "not in your plan"}
        if method == "POST" and rest == "import":
            return self._start_import(host, body)
        if method == "GET" and rest.startswith("jobs/"):
            return 200, self.imports[rest.removeprefix("jobs/")]
        if method == "POST" and not rest:
            return 201, self._create(kind, body)
        if method == "DELETE":
            return (204, b"") if self.kept[kind].pop(rest, None) else (404, {"message": "not found"})
        query = {k: int(v[0]) for k, v in parse_qs(parts.query).items()}
        size = query.get("page_size", 1000)
        rows = list(self.kept[kind].values())[query.get("page", 0) * size :][:size]
        return 200, {kind: [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]}

    def _create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        id_ = str(uuid.uuid4())
        if kind == "glossaries":
            (entries,) = body["dictionaries"]
            pairs = dict(line.split("\t") for line in entries["entries"].split("\n"))
            about = {"source_lang": "en", "target_lang": "de", "entry_count": len(pairs)}
            row = {"glossary_id": id_, "name": body["name"], "creation_time": NOW, "dictionaries": [about]}
            row["_pairs"] = pairs
        else:
            row = {"style_id": id_, "version": 1, "creation_time": NOW, "updated_time": NOW} | body
        self.kept[kind][id_] = row
        return row

    def _start_import(self, host: str, body: dict[str, Any]) -> Answer:
        id_ = str(uuid.uuid4())
        job = {"job_id": id_, "operation": "import", "results": [{"status": "awaiting_input"}], "_body": body}
        self.imports[id_] = job
        return 201, {"job_id": id_, "upload_url": f"{host}/storage/{id_}?signature=hush"}

    def upload(self, path: str, raw: bytes) -> Answer:
        """A file put at the address of an import."""
        job = self.imports[urlsplit(path).path.removeprefix("/storage/")]
        assert len(raw) == job["_body"]["source_file"]["content_length"]
        segments = {}
        for unit in ET.fromstring(raw).iter("tu"):
            sides = {variant.get(LANG): variant.findtext("seg") for variant in unit.iter("tuv")}
            segments[sides["en"]] = sides["de"]
        id_ = str(uuid.uuid4())
        self.kept["translation_memories"][id_] = {
            "translation_memory_id": id_,
            "name": job["_body"]["parameters"]["display_name"],
            "source_language": "en",
            "target_languages": ["de"],
            "segment_count": len(segments),
            "_segments": segments,
        }
        job["results"] = [{"status": "completed", "translation_memory_id": id_, "skipped_segment_count": 0}]
        return 200, b""

    def known(self, body: dict[str, Any]) -> bool:
        """Whether what a translation asks for is there."""
        fields = {"glossary_id": "glossaries", "style_id": "style_rules"}
        fields["translation_memory_id"] = "translation_memories"
        return all(body[field] in self.kept[kind] for field, kind in fields.items() if field in body)

    def translate(self, text: str, body: dict[str, Any]) -> str:
        """What memory or glossary make of a text, if anything."""
        memory = self.kept["translation_memories"].get(body.get("translation_memory_id", ""), {}).get("_segments", {})
        glossary = self.kept["glossaries"].get(body.get("glossary_id", ""), {}).get("_pairs", {})
        used = [german for english, german in glossary.items() if english in text]
        return memory.get(text) or " ".join(used)
