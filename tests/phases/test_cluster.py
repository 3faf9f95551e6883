"""Clustering on points whose structure is known."""

import numpy as np
import pytest

from jaxmoe.phases import cluster


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [12.5, 2]])
    points = np.concatenate([c + 0.3 * rng.standard_normal((30, 2)) for c in centres])
    return points, np.repeat(np.arange(4), 30)


@pytest.mark.parametrize("selection", ["leaf", "eom"])
def test_hdbscan_finds_the_blobs_and_memberships_agree(blobs, selection):
    points, _ = blobs
    clusterer = cluster.fit_hdbscan(points, 0.1, 5, selection)
    labels = clusterer.labels_
    assert labels.max() == 3
    mapping = cluster.merge_to(points, labels, 10)
    assert mapping == {0: 0, 1: 1, 2: 2, 3: 3}
    soft = cluster.memberships(clusterer, None, mapping, 10)
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-9)
    assert (soft[:, 4:] == 0).all()  # spare experts are nobody's
    core = labels >= 0
    assert (soft.argmax(1)[core] == labels[core]).mean() > 0.95
    new = cluster.memberships(clusterer, points + 0.01, mapping, 10)
    assert (new.argmax(1)[core] == labels[core]).mean() > 0.95


def test_more_clusters_than_experts_are_merged_by_nearness(blobs):
    points, truth = blobs
    mapping = cluster.merge_to(points, truth, 3)
    assert mapping[1] == mapping[3] and len(set(mapping.values())) == 3


def test_noise_is_taught_softly_or_left_out_never_as_cluster_zero():
    labels, soft = np.array([1, -1]), np.array([[0.3, 0.7], [0.4, 0.6]])
    mapping = {0: 0, 1: 1}
    np.testing.assert_array_equal(cluster.posterior(labels, soft, mapping, "soft"), [[0, 1], [0.4, 0.6]])
    np.testing.assert_array_equal(cluster.posterior(labels, soft, mapping, "drop"), [[0, 1], [0, 0]])


def test_figures_tell_agreement_from_chance():
    rng = np.random.default_rng(0)
    same = dict(severity="x", channel="c", prompt="p")
    items = [dict(etiology=str(i % 4), speaker=str(rng.integers(9)), **same) for i in range(200)]
    found = cluster.figures(np.arange(200) % 4, items)
    assert found["etiology"] == pytest.approx(1.0)
    assert abs(found["speaker"]) < 0.1
