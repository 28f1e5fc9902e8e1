"""Estimators of the KL against the KL itself, summed over a vocabulary."""

import numpy as np
import pytest
import torch

from pipeline.training.divergence import k2, k3, weighted_k3

GENERATOR = np.random.default_rng(0)
PI, REFERENCE, BEHAVIOUR = (np.log(GENERATOR.dirichlet(np.ones(7))) for _ in range(3))
KL = float((np.exp(PI) * (PI - REFERENCE)).sum())


def test_the_mean_of_k3_over_pi_is_the_kl() -> None:
    d = REFERENCE - PI
    assert (np.exp(PI) * k3(d)).sum() == pytest.approx(KL, rel=1e-12) and (k3(d) >= 0).all()
    np.testing.assert_array_equal(k2(d), d**2 / 2)
    np.testing.assert_allclose(k3(torch.from_numpy(d)).numpy(), k3(d), rtol=1e-12)


def test_weighted_k3_and_its_gradient_are_those_of_the_kl_over_tokens_of_another() -> None:
    logits = torch.from_numpy(PI).requires_grad_()
    reference, behaviour = torch.from_numpy(REFERENCE), torch.from_numpy(BEHAVIOUR)
    logprobs = logits.log_softmax(0)
    mean = (behaviour.exp() * weighted_k3(logprobs, reference, behaviour)).sum()
    kl = (logprobs.exp() * (logprobs - reference)).sum()
    assert mean.item() == pytest.approx(KL, rel=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (mean, kl)), rtol=1e-10, atol=1e-12
    )
    ruled_out = torch.tensor([-2000.0], dtype=torch.float64)  # exp(d) is infinite
    expected = (reference[:1] - behaviour[:1]).exp()
    torch.testing.assert_close(weighted_k3(ruled_out, reference[:1], behaviour[:1]), expected)
