"""Give one layer its excitations and turn the responses into one row of measurements."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from functools import partial

from srdd.measurements import LayerMeasurement
from srdd.probes.architecture import HostResponse
from srdd.probes.checksum import watch_products
from srdd.probes.gain import measure_gain
from srdd.probes.kv_cache import measure_kv_cache
from srdd.probes.pass_through import measure_pass_through
from srdd.probes.samples import LayerSamples, Sample, to_host, unit_roundoff
from srdd.probes.shape import measure_shape
from srdd.probes.stability import measure_stability
from srdd.replay.host import HostReplay
from srdd.trials import TRIALS
from srdd.walk import LayerVisit

# The documents' names of the probes, each with the group it is measured in.
_GROUP = {
    "instability": "stability",
    "gain": "gain",
    "min_max_gain": "gain",
    "discrete_count": "gain",
    "kurtosis": "shape",
    "pile_up": "shape",
    "pass_through": "pass_through",
    "kv_cache": "kv_cache",
    "checksum": "checksum",
}
PROBES = tuple(_GROUP)

# Which excitations each group reads; the shape of the output needs none beyond the model's own pass.
_NEEDS = {
    "stability": ("repeat_",),
    "gain": ("perturbed", "offset_"),
    "shape": (),
    "pass_through": ("amplified",),
    "kv_cache": (),
    "checksum": ("repeat_0",),
}
# Which of them host replay follows: the layer's own input, and those that take it far from its data.
_REPLAYED = ("repeat_0", "offset_up", "offset_down", "amplified")


def measure_layer(
    visit: LayerVisit,
    probes: Collection[str],
    seed: int,
    replay: HostReplay | None = None,
    trials: int = TRIALS,
    host: HostResponse | None = None,
) -> LayerMeasurement:
    """Run the excitations that `probes` and `replay` need and measure, with `trials` runs on the layer's own input, the
    model's own included. `host` is asked about a layer that does not pass its input through. A layer whose values are
    not all finite is reported as such; it is replayed under its own input, but not probed.
    """
    groups = {_GROUP[probe] for probe in probes}
    finite = visit.finite_input and visit.finite_output
    samples = _sample(visit, groups if finite else set(), seed, replay if visit.finite_input else None, trials)
    weights = replay.weights(visit) if replay else None
    subnormals = replay.subnormals if replay else None
    sites = replay.finish(visit) if replay else None
    if not finite:
        return LayerMeasurement(
            visit.index, visit.site, visit.finite_input, visit.finite_output, replay=sites, weights=weights
        )
    asked = partial(host.to, visit) if host else None
    one_stream = visit.call.stream.dim() <= 3  # several are mixed in each layer: none comes back as itself
    return LayerMeasurement(
        index=visit.index,
        site=visit.site,
        finite_input=True,
        finite_output=True,
        stability=measure_stability(samples) if "stability" in groups else None,
        gain=measure_gain(samples) if "gain" in groups else None,
        shape=measure_shape(samples) if "shape" in groups else None,
        pass_through=measure_pass_through(samples, asked) if "pass_through" in groups and one_stream else None,
        kv_cache=measure_kv_cache(visit) if "kv_cache" in groups else None,
        checksum=max(samples.products, key=lambda product: product.residual, default=None),
        subnormals=subnormals,
        replay=sites,
        weights=weights,
    )


def _sample(
    visit: LayerVisit, groups: Collection[str], seed: int, replay: HostReplay | None, trials: int
) -> LayerSamples:
    wanted = tuple(prefix for group in groups for prefix in _NEEDS[group])
    samples = LayerSamples(to_host(visit.call.stream), to_host(visit.output), unit_roundoff(visit.call.stream.dtype))
    for excitation in visit.excitations(seed, trials - 1):
        replayed = replay is not None and excitation.name in _REPLAYED
        if replayed or excitation.name.startswith(wanted):
            with ExitStack() as watched:
                if "checksum" in groups and excitation.name == "repeat_0":
                    samples.products = watched.enter_context(watch_products(visit.call.layer, visit.site))
                if replay and replayed:
                    watched.enter_context(replay.recording(visit, excitation.name))
                output = visit.respond(excitation).output
            samples.add(excitation.name, Sample(to_host(excitation.stream), to_host(output), excitation.size))
    if replay is not None:
        visit.runs += replay.excite_submodules(visit)
    return samples
