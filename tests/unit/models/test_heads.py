import math

import pytest
import torch

from mist_interp.models.heads import RegressionHead, TimestepEncoder, cosine_schedule, denoise
from mist_interp.models.small import small_config


def test_a_perfect_noise_predictor_leads_to_the_clean_chunk():
    kept = cosine_schedule(50)
    clean = torch.tensor([[[0.5, -0.25], [0.9, 0.0]]])

    def predict(chunk, timestep):
        return (chunk - kept[timestep] ** 0.5 * clean) / (1 - kept[timestep]) ** 0.5

    for steps in (50, 10):
        found = denoise(torch.randn(1, 2, 2), predict, 50, steps)
        torch.testing.assert_close(found, clean, atol=1e-4, rtol=0)


def test_every_timestep_is_visited_once_from_the_noisiest():
    visited = []
    denoise(torch.zeros(1, 1, 1), lambda chunk, t: visited.append(t) or chunk, 50, 50)
    assert visited == list(range(49, -1, -1))
    visited.clear()
    denoise(torch.zeros(1, 1, 1), lambda chunk, t: visited.append(t) or chunk, 50, 5)
    assert visited == [40, 30, 20, 10, 0]


def test_the_clean_chunk_is_clipped():
    found = denoise(torch.full((1, 1, 1), 100.0), lambda chunk, t: torch.zeros_like(chunk), 50, 50)
    assert found.item() == pytest.approx(1.0)


def test_schedule():
    kept = cosine_schedule(50)
    assert kept.dtype == torch.float32 and (kept.diff() < 0).all()
    signal = [math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(51)]
    assert kept[0].item() == pytest.approx(signal[1] / signal[0], rel=1e-6)
    assert (kept[49] / kept[48]).item() == pytest.approx(0.001, rel=1e-3)


def test_timestep_encoding():
    encoded = TimestepEncoder(6)(torch.tensor([3.0]))
    frequencies = [1.0, 10000**-0.5, 10000**-1.0]
    expected = [math.sin(3 * f) for f in frequencies] + [math.cos(3 * f) for f in frequencies]
    torch.testing.assert_close(encoded[0], torch.tensor(expected))


def test_seven_consecutive_states_make_one_step():
    config = small_config(hidden=12, heads=2)
    head = RegressionHead(config)
    states = torch.randn(1, 56, 12)
    whole = head(states)
    changed = states.clone()
    changed[:, 7:14] += 1
    rows = (head(changed) - whole).abs().amax(-1)[0]
    assert (rows > 0).tolist() == [False, True] + [False] * 6
