"""Clustering on points whose structure is known."""

import numpy as np
import pytest

from jaxmoe.clustering import features, methods, quality
from jaxmoe.phases.cluster import pooled


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [12.5, 2]])
    points = np.concatenate([c + 0.3 * rng.standard_normal((30, 2)) for c in centres])
    return points, np.repeat(np.arange(4), 30)


SIZES = dict(num_clusters=4, min_cluster_share=0.1, min_samples=5, selection="eom", seed=0)


@pytest.mark.parametrize("selection", ["leaf", "eom"])
def test_hdbscan_finds_the_blobs_and_memberships_agree(blobs, selection):
    points, _ = blobs
    found = methods.fit("hdbscan", points, **SIZES | {"selection": selection})
    assert found.soft.shape == (120, 4)
    mapping = methods.merge_to(points, found.labels, 10)
    np.testing.assert_array_equal(mapping, [0, 1, 2, 3])
    taught = methods.posterior(found.labels, found.soft, mapping, 10, "membership")
    np.testing.assert_allclose(taught.sum(1), 1, atol=1e-9)
    assert (taught[:, 4:] == 0).all()  # spare experts are nobody's
    core = found.labels >= 0
    assert (taught.argmax(1)[core] == found.labels[core]).mean() > 0.95
    labels, soft = found.assign(points + 0.01)
    assert (soft.argmax(1)[core] == found.labels[core]).mean() > 0.95
    assert (labels[core] == found.labels[core]).mean() > 0.9


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_rivals_find_the_blobs_too(blobs, method):
    points, truth = blobs
    found = methods.fit(method, points, **SIZES)
    assert quality.adjusted_rand(found.labels, truth) > 0.95
    np.testing.assert_array_equal(found.assign(points)[0], found.labels)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_fewer_speakers_than_experts_are_clustered(method):
    points = np.random.default_rng(0).standard_normal((6, 2))
    found = methods.fit(method, points, **SIZES | {"num_clusters": 10})
    assert sorted(set(found.labels)) == list(range(found.labels.max() + 1)) and found.soft.shape[0] == 6
    assert np.isnan(quality.density(points, np.array([0, 0, 0, 0, 1, 1])))  # the library has no tree of two


def test_an_unknown_method_is_named(blobs):
    with pytest.raises(ValueError, match="method='dbscan'; expected one of hdbscan"):
        methods.fit("dbscan", blobs[0], **SIZES)


def test_points_without_clusters_are_one_and_a_warning_says_so(capsys):
    found = methods.fit("hdbscan", np.random.default_rng(0).uniform(size=(40, 8)), **SIZES | {"min_cluster_share": 0.5})
    assert (found.labels == 0).all() and found.soft.shape == (40, 1)
    labels, soft = found.assign(np.zeros((3, 8)))
    assert labels.tolist() == [0, 0, 0] and soft.tolist() == [[1.0]] * 3
    assert "WARNING cluster" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8])
def test_few_speakers_are_no_fault(count):
    """From one person's recordings on; UMAP and HDBSCAN have their own least numbers."""
    rng = np.random.default_rng(count)
    x, speakers = rng.standard_normal((4 * count, 16)), np.repeat(np.arange(count), 4)

    def fit(seed, kept):
        points, unit = make_space(umap_dim=5, seed=seed).fit(x[kept], speakers[kept].astype(str), [], None)
        return methods.fit("hdbscan", points, **SIZES | {"min_samples": 2}).labels[unit]

    labels = fit(0, np.arange(len(x)))
    assert len(labels) == 4 * count
    figures = quality.stability(fit, labels, speakers)
    assert -1 <= figures["subsamples"] <= 1 and -1 <= figures["seeds"] <= 1


def test_more_clusters_than_experts_are_merged_by_nearness(blobs):
    points, truth = blobs
    mapping = methods.merge_to(points, truth, 3)
    assert mapping[1] == mapping[3] and len(set(mapping.tolist())) == 3


def test_noise_is_taught_softly_or_left_out_never_as_cluster_zero():
    labels, soft = np.array([1, -1]), np.array([[0.3, 0.7], [0.4, 0.6]])
    taught = lambda noise: methods.posterior(labels, soft, np.array([0, 1]), 2, noise)
    np.testing.assert_array_equal(taught("soft"), [[0, 1], [0.4, 0.6]])
    np.testing.assert_array_equal(taught("drop"), [[0, 1], [0, 0]])
    np.testing.assert_array_equal(taught("membership"), soft)


@pytest.fixture(scope="module")
def confounded():
    """Embeddings in which a channel shared by speakers is louder than how they speak, and each has a voice."""
    rng = np.random.default_rng(0)
    width, speakers = 24, 60
    manner, channel = rng.standard_normal((3, width)), 6 * rng.standard_normal((4, width))
    manner_of, channel_of = np.arange(speakers) % 3, rng.integers(0, 4, speakers)
    who = np.repeat(np.arange(speakers), 5)
    noise = lambda *shape: 0.3 * rng.standard_normal(shape)
    x = 3 * manner[manner_of[who]] + channel[channel_of[who]] + noise(len(who), width)
    clip = 3 * manner[rng.integers(0, 3, 20)][:, None] + noise(20, 1, width)
    weights = rng.dirichlet(np.ones(4), (20, 5))  # other channels than those: mixtures of them
    variants = clip + weights @ channel + noise(20, 5, width)
    return x, [f"s{w:02d}" for w in who], manner_of[who], channel_of[who], variants


def make_space(**changes) -> features.Space:
    fields = dict(nuisance=3, remove_text=False, by_speaker=True, pca=5, umap_dim=0, neighbors=10, seed=0)
    return features.Space(**fields | changes)


@pytest.mark.parametrize("nuisance", [0, 3])
def test_nuisance_directions_take_out_the_channel(confounded, nuisance):
    x, speakers, manner, channel, variants = confounded
    points, unit = make_space(nuisance=nuisance).fit(x, speakers, [variants], None)
    assert points.shape == (60, 5)
    found = methods.fit("kmeans", points, **SIZES | {"num_clusters": 3}).labels[unit]
    by_manner, by_channel = quality.adjusted_rand(found, manner), quality.adjusted_rand(found, channel)
    assert (by_manner > 0.95) if nuisance else (by_channel > by_manner)


def test_space_places_what_it_was_fitted_on_where_it_was(confounded):
    x, speakers, *_, variants = confounded
    space = make_space()
    points, unit = space.fit(x, speakers, [variants], None)
    again, unit_again = space.apply(x, speakers, None)
    np.testing.assert_allclose(again, points, atol=1e-9)
    np.testing.assert_array_equal(unit, unit_again)
    alone, _ = make_space(by_speaker=False).fit(x, speakers, [variants], None)
    assert alone.shape == (300, 5)


def test_words_are_regressed_out():
    rng = np.random.default_rng(0)
    text, manner = rng.standard_normal((200, 6)), rng.integers(0, 2, 200)
    x = 5 * text @ rng.standard_normal((6, 16)) + 2 * manner[:, None] * rng.standard_normal(16)
    speakers = [str(i) for i in range(200)]
    share = lambda points: np.corrcoef(points[:, 0], manner)[0, 1] ** 2
    fields = dict(nuisance=0, by_speaker=False, pca=1)
    with_words, _ = make_space(**fields).fit(x, speakers, [], None)
    without, _ = make_space(remove_text=True, **fields).fit(x, speakers, [], text)
    assert share(without) > 0.9 > 0.3 > share(with_words)


def test_agreement_tells_what_is_known_from_chance():
    rng = np.random.default_rng(0)
    same = dict(severity="x", channel="c", prompt="p", voice="v")
    items = [dict(etiology=str(i % 4), speaker=str(rng.integers(9)), **same) for i in range(200)]
    found = quality.agreement(np.arange(200) % 4, items)
    assert found["etiology"] == pytest.approx(1.0)
    assert abs(found["speaker"]) < 0.1


def test_agreement_of_speakers_is_of_chance_where_labels_are_dealt_to_speakers_at_random():
    rng = np.random.default_rng(0)
    channels, clusters = rng.integers(8, size=66), rng.integers(8, size=66)
    same = dict(severity="x", prompt="p", voice="v")
    of = lambda s: dict(speaker=str(s), channel=int(channels[s]), etiology=str(clusters[s]), **same)
    items, labels = [of(s) for s in np.repeat(np.arange(66), 15)], np.repeat(clusters, 15)
    labels[::15] = -1  # one recording of each speaker is noise: the speaker's cluster is the commonest
    each, once = quality.agreement(labels, items), quality.agreement_of_speakers(labels, items)
    assert once["etiology"] == pytest.approx(1.0)
    assert abs(once["channel"]) < 0.1 < each["channel"]


def test_stability_is_high_for_structure_and_low_for_none(blobs):
    points, _ = blobs
    speakers = np.arange(120)
    fit = lambda x: lambda seed, kept: methods.fit("kmeans", x[kept], **SIZES | {"seed": seed}).labels
    stable = quality.stability(fit(points), fit(points)(0, speakers), speakers)
    noise = np.random.default_rng(0).standard_normal((120, 8))
    unstable = quality.stability(fit(noise), fit(noise)(0, speakers), speakers)
    assert min(stable.values()) > 0.95 and unstable["subsamples"] < 0.7


def test_density_and_probe(blobs):
    points, truth = blobs
    shuffled = np.random.default_rng(0).permutation(truth)
    assert quality.density(points, truth) > 0.5 > quality.density(points, shuffled)
    told = quality.probe(points[::2], truth[::2], points[1::2], truth[1::2])
    assert told == {"accuracy": 1.0, "chance": 0.25}


def test_pooling_takes_means_or_means_and_deviations_of_a_depth():
    depths = np.arange(12.0).reshape(2, 2, 3)  # two utterances, mean and deviation, width 3
    np.testing.assert_array_equal(pooled(depths, "mean"), [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(pooled(depths, "mean+std"), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
    with pytest.raises(ValueError, match="expected mean or mean\\+std"):
        pooled(depths, "max")
