"""From pooled encoder states to points that can be clustered: what was said, by whom and through what taken out.

Standardise, drop nuisance directions, regress out the words (optional), average a speaker, PCA, UMAP. Everything is
fitted on one set of utterances and applied to others. Shapes: U utterances, D width of the encoder, N units (speakers,
or utterances where speakers are not averaged).
"""

from collections.abc import Sequence
import dataclasses
from typing import Any
import warnings

import numpy as np


def nuisance_directions(variants: np.ndarray, count: int) -> np.ndarray:
    """An orthonormal basis [D, count] of how embeddings move between variants [clips, variants, D] of a recording.

    The right singular vectors of the deviations from each clip's mean with the largest singular values (nuisance
    attribute projection: Solomonoff, Campbell and Boardman 2005, with variants in place of labelled sessions).
    """
    deviations = variants - variants.mean(axis=1, keepdims=True)
    _, _, basis = np.linalg.svd(deviations.reshape(-1, variants.shape[-1]), full_matrices=False)
    return basis[:count].T


def average(features: np.ndarray, speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(means by speaker [N, D] in the order of their sorted names, the row of each utterance's speaker [U])."""
    names, index = np.unique(np.asarray(speakers, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((len(names), features.shape[1]))
    np.add.at(sums, index, features)
    return sums / np.bincount(index)[:, None], index


@dataclasses.dataclass
class Space:
    """The space that is clustered.

    Args:
      nuisance: how many directions of channel, and again of voice, are dropped; 0 drops none.
      remove_text: whether a ridge regression on features of the transcript is subtracted. It helps where prompts are
        shared by many speakers and needs the transcript of everything that is placed in the space.
      by_speaker: whether the units are speakers' means rather than utterances.
      pca, umap_dim, neighbors: of the reduction; umap_dim 0 stops after the PCA, and so do fewer than umap_dim + 2
        units, in which UMAP finds no starting point.
    """

    nuisance: int
    remove_text: bool
    by_speaker: bool
    pca: int
    umap_dim: int
    neighbors: int
    seed: int

    def fit(
        self, features: np.ndarray, speakers: Sequence[str], variants: Sequence[np.ndarray], text: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points [N, umap_dim] of the units and each utterance's unit [U].

        Args:
          features: [U, D].
          variants: sets of variants [clips, variants, D] (other channels; other voices).
          text: [U, F] features of the transcripts, read if remove_text.
        """
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import StandardScaler

        self._scale = StandardScaler().fit(features)
        scaled = [self._scale.transform(v.reshape(-1, v.shape[-1])).reshape(v.shape) for v in variants]
        bases = [nuisance_directions(v, self.nuisance) for v in scaled if self.nuisance]
        self._nuisance = np.linalg.qr(np.concatenate(bases, axis=1))[0] if bases else None  # [D, directions]
        self._words = Ridge(10.0).fit(text, self._clean(features)) if self.remove_text else None
        units, index = self._units(features, speakers, text)
        self._pca = PCA(min(self.pca, *units.shape), svd_solver="full")
        points = self._pca.fit_transform(units)
        self._umap: Any = None
        if self.umap_dim and len(points) >= self.umap_dim + 2:
            from umap import UMAP

            self._umap = UMAP(
                n_components=self.umap_dim,
                n_neighbors=min(self.neighbors, len(points) - 1),
                min_dist=0.0,
                random_state=self.seed,
                n_jobs=1,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # UMAP on one thread says so at every seed
                points = self._umap.fit_transform(points)
        return np.asarray(points, np.float64), index

    def apply(
        self, features: np.ndarray, speakers: Sequence[str], text: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As fit returns, for other utterances."""
        units, index = self._units(features, speakers, text)
        points = self._pca.transform(units)
        return np.asarray(points if self._umap is None else self._umap.transform(points), np.float64), index

    def cleaned(self, features: np.ndarray, text: np.ndarray | None) -> np.ndarray:
        """Utterances [U, D] after all that is taken out, before averaging and reduction."""
        clean = self._clean(features)
        return clean if self._words is None else clean - self._words.predict(text)

    def _clean(self, features: np.ndarray) -> np.ndarray:
        scaled = self._scale.transform(features)
        return scaled if self._nuisance is None else scaled - scaled @ self._nuisance @ self._nuisance.T

    def _units(
        self, features: np.ndarray, speakers: Sequence[str], text: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        clean = self.cleaned(features, text)
        return average(clean, speakers) if self.by_speaker else (clean, np.arange(len(clean)))
