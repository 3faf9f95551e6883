"""The translator that phases use: an engine behind the cache, and behind the courier where it costs money."""

from collections.abc import Sequence

from tqdm import tqdm

from jaxmoe.mt import Engine
from jaxmoe.mt.cache import Cache
from jaxmoe.mt.courier import Courier


class CachedTranslator:
    """A Translator that asks the engine only for what the cache lacks, each distinct text once."""

    def __init__(self, engine: Engine, cache: Cache, courier: Courier | None = None) -> None:
        """courier: of an engine that bills."""
        assert engine.billed == (courier is not None)
        self.name, self.signature = engine.name, engine.signature
        self.engine, self.cache, self.courier = engine, cache, courier

    def translate(self, texts: Sequence[str]) -> list[str]:
        """German of each English text, in order; an empty text stays empty and costs nothing.

        Raises:
            BudgetExceeded: the next request of an engine that bills would go over its budget.
            RequestError: a request failed for good; what was translated before it is in the cache.
        """
        keys = [text.strip() for text in texts]
        distinct = [key for key in dict.fromkeys(keys) if key]
        found = self.cache.get(self.signature, distinct)
        missing = [key for key in distinct if key not in found]
        if missing:
            self._fill(missing)
            found.update(self.cache.get(self.signature, missing))
        return [found[key] if key else "" for key in keys]

    def _fill(self, missing: list[str]) -> None:
        """Translate into the cache."""
        batches = self.engine.plan(missing)
        if self.courier:
            self.courier.announce(missing)
        # leave=None: it goes when it is done where another bar goes on.
        with tqdm(total=len(missing), desc=self.name, unit="text", leave=None, disable=len(batches) < 2) as bar:
            for batch in batches:
                if self.courier:
                    self.courier.send(batch)
                else:
                    self.cache.put(self.signature, zip(batch, self.engine.run(batch), strict=True))
                bar.update(len(batch))
