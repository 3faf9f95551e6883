"""The findings of a run in plain sentences, each built from metrics.json alone."""

from typing import Any


def by_key(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The systems that were run, by key."""
    return {s["key"]: s for s in metrics["systems"] if s["status"] == "run"}


def difference(metrics: dict[str, Any], system: str, baseline: str) -> dict[str, Any] | None:
    """The paired difference of two systems, or None when it was not computed."""
    return next((d for d in metrics["differences"] if (d["system"], d["baseline"]) == (system, baseline)), None)


def verdict(figures: dict[str, Any] | None, better: str) -> str:
    """How sure a difference is: `lower`, `higher` (the interval leaves zero out) or `no clear difference`.

    better: "lower" for error rates, "higher" for BLEU; it decides between "better" and "worse".
    """
    if not figures or not figures["ci95"]:
        return "unknown"
    low, high = figures["ci95"]
    if low <= 0 <= high:
        return "no clear difference"
    return "better" if (high < 0) == (better == "lower") else "worse"


def sentences(metrics: dict[str, Any]) -> list[str]:
    """What a reader should take away, most important first."""
    out = []
    systems = by_key(metrics)
    focus, base = systems.get(metrics["focus"]), systems.get(metrics["baseline"])
    if focus and focus["wer"] is not None:
        out.append(_wer_sentence(metrics, focus, base))
        if focus["key"] in ("moe", "moe-encoder"):
            out.extend(_addition_sentences(metrics))
        out.extend(_group_sentences(focus))
    if focus and focus["bleu"] is not None:
        out.append(_bleu_sentence(metrics, focus))
    out.extend(stress_sentences(metrics))
    if metrics["routing"]:
        out.append(_routing_sentence(metrics["routing"]))
    if metrics["clusters"]:
        out.append(_cluster_sentence(metrics["clusters"]))
    missing = [s for s in metrics["systems"] if s["status"] != "run"]
    if missing:
        ran = len(metrics["systems"]) - len(missing)
        out.append(
            f"{ran} of {len(metrics['systems'])} systems were run; the table gives the reason for every other one."
        )
    return out


def label(value: str) -> str:
    """A group's value as people write it."""
    known = {
        "als": "ALS",
        "parkinson": "Parkinson\u2019s",
        "parkinsons": "Parkinson\u2019s",
        "f": "female",
        "m": "male",
    }
    return known.get(value.casefold(), value)


def _interval(ci: list[float] | None) -> str:
    return f" (95 % interval {ci[0]:.1f} to {ci[1]:.1f})" if ci else ""


def change(figures: dict[str, Any], unit: str) -> str:
    """A paired difference in words: how much fewer or more, how sure, or that chance may explain it."""
    d, ci = figures["difference"], figures["ci95"]
    if ci is None:
        return f"{abs(d):.1f} {'fewer' if d < 0 else 'more'} {unit} (one speaker, so no interval)"
    low, high = ci
    if low <= 0 <= high:
        return f"{d:+.1f} {unit}, which may be chance ({low:+.1f} to {high:+.1f})".replace("-", "\u2212")
    if high < 0:
        return f"{-d:.1f} fewer {unit} ({-high:.1f} to {-low:.1f})"
    return f"{d:.1f} more {unit} ({low:.1f} to {high:.1f})"


def _wer_sentence(metrics: dict[str, Any], focus: dict[str, Any], base: dict[str, Any] | None) -> str:
    text = f"{focus['name']} gets {focus['wer']:.1f} of 100 words wrong{_interval(focus['ci95']['wer'])}"
    found = difference(metrics, focus["key"], metrics["baseline"])
    if base is None or base["wer"] is None or found is None or not found["wer"]:
        return text + "."
    return (
        f"{text}. The baseline, {base['name']}, gets {base['wer']:.1f} wrong; the difference is"
        f" {change(found['wer'], 'errors')}."
    )


ADDITIONS = {
    ("moe-encoder", "moe"): "Adapting the encoder too, against the mixture alone",
    ("moe", "lora"): "The mixture of experts against one LoRA for everybody",
}


def _addition_sentences(metrics: dict[str, Any]) -> list[str]:
    compared = {title: difference(metrics, *pair) for pair, title in ADDITIONS.items()}
    return [f"{title}: {change(d['wer'], 'errors per 100 words')}." for title, d in compared.items() if d and d["wer"]]


def _group_sentences(focus: dict[str, Any]) -> list[str]:
    groups = {k: v for k, v in focus["by"].get("etiology", {}).items() if v["wer"] is not None}
    if len(groups) < 2:
        return []
    worst, best = next(iter(groups)), list(groups)[-1]
    return [
        f"It is hardest for {label(worst)} (WER {groups[worst]['wer']:.1f}, {_speakers(groups[worst])}) and"
        f" easiest for {label(best)} (WER {groups[best]['wer']:.1f}, {_speakers(groups[best])})."
    ]


def _bleu_sentence(metrics: dict[str, Any], focus: dict[str, Any]) -> str:
    text = f"Its German translations reach BLEU {focus['bleu']:.1f}{_interval(focus['ci95']['bleu'])}"
    ceiling = next((s for s in metrics["systems"] if s["kind"] == "mt" and s["mt"] == focus["mt"] and s["bleu"]), None)
    if ceiling:
        text += f"; the same translator given the true transcript reaches {ceiling['bleu']:.1f}"
    return text + (f". {focus['note']}" if focus["note"] else ".")


def _routing_sentence(routing: dict[str, Any]) -> str:
    used = sum(u > 0.01 for u in routing["usage"])
    top = max(routing["usage"])
    text = (
        f"{used} of {routing['experts']} experts each lead more than 1 % of the utterances; the busiest leads"
        f" {100 * top:.0f} % (effective number {routing['effective_experts']:.1f})."
    )
    if top > 0.9:
        return text + " The routing has collapsed: nearly all utterances go to one expert."
    return text


def _cluster_sentence(clusters: dict[str, Any]) -> str:
    ami = {k: v for k, v in clusters["ami"].items() if v is not None}
    text = (
        f"{clusters['found']} clusters were found ({100 * clusters['noise_share']:.0f} % of recordings left out as"
        " noise)"
    )
    if not ami:
        return text + "."
    leading = max(ami, key=lambda k: ami[k])
    return text + f"; they agree most with {leading} (AMI {ami[leading]:.2f}; 0 is chance, 1 is equal)."


def stress_sentences(metrics: dict[str, Any]) -> list[str]:
    """What the three stress tests say of the focus system: ordinary speech, noise, silence, accents."""
    stress, key = metrics["stress"], metrics["focus"]
    out = []
    for group in stress["groups"]:
        found = group["systems"].get(key)
        if found and "difference" in found and (group["group"] == "controls" or group["set"] == "recordings"):
            out.append(_group_cost(group, found, stress["target"]))
    if not isinstance(stress["noise"], str):
        lines = stress["noise"]["curves"].get(key, {})
        ends = [(line[-1], noise) for noise, line in lines.items()]
        worst = max(ends, key=lambda end: end[0]["wer"] or 0.0, default=None)
        if worst:
            clean = lines[worst[1]][0]["wer"]
            out.append(
                f"Noise hurts most as {worst[1]} at {worst[0]['snr_db']:g} dB: {clean:.1f} of 100 words are wrong in"
                f" clean recordings, {worst[0]['wer']:.1f} there."
            )
        heard = stress["silence"].get(key)
        if heard:
            out.append(f"On {heard['clips']} recordings without speech it writes text in {heard['with_text']}.")
    return out


def _group_cost(group: dict[str, Any], found: dict[str, Any], target: float) -> str:
    controls = group["group"] == "controls"
    who = "people without a disorder" if controls else f"the recordings \u201c{group['group']}\u201d"
    verdict = {
        "met": f"the target of at most {target} points more is met",
        "missed": f"the target of at most {target} points more is missed",
        "open": f"too few to say whether the target of at most {target} points more is met",
    }[found["target"]]
    cost = change(found["difference"], "errors per 100 words")
    return f"For {who} ({_speakers(group)}), the change by adaptation is {cost}; {verdict}."


def _speakers(group: dict[str, Any]) -> str:
    n = group["speakers"]
    return f"{n} speaker" if n == 1 else f"{n} speakers"
