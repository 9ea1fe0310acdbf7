"""How far a step may be from the exact one: the roundings of every formula, carried on to the result."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mt2o_ext.ops import FIELDS, Order, Rule
from support.samplers import StepProblem, unit


@dataclass
class Bounds:
    """Allowed errors of the results, [K, P] each."""

    theta: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor
    ema: Tensor


def step_bounds(before: StepProblem, after: StepProblem, segment_of: Tensor, rule: Rule, order: Order) -> Bounds:
    """From a problem and the oracle's result; everything here is an absolute value."""
    u = unit(before.theta.dtype)
    fields = before.segments[segment_of.clamp_min(0)]  # [P, fields]
    f = {name: fields[:, i] for i, name in enumerate(FIELDS)}
    count = after.step.double()[:, segment_of.clamp_min(0)]
    x = before.theta.double().abs()

    # g: T products of rounded weights and T - 1 sums, the scale; coupled decay, its factor rounded, and a sum
    weights = torch.ones(x.shape[0], 1).double() if before.weights is None else before.weights.abs()
    scale = 1.0 if before.grad_scale is None else before.grad_scale.item()
    g = torch.einsum("kt,ktp->kp", weights, before.grads.double().abs()) / scale
    decoupled = f["decoupled"] != 0
    coupled = torch.where(decoupled, 0.0, f["weight_decay"]) * x
    g_error = u * ((weights.shape[1] + 3) * g + 3 * (g + coupled))
    g = g + coupled

    m_error = v_error = torch.zeros_like(x)
    decay = torch.where(decoupled, f["lr"] * f["weight_decay"], 0.0) * x
    if rule == Rule.SGD:
        u_error = f["lr"] * (g_error + 2 * u * g)
    else:
        old = before.exp_avg.double().abs()
        keep = f["beta2"] if rule == Rule.LION else f["beta1"]
        gain = 1.0 if rule == Rule.MOMENTUM else 1 - keep
        m = keep * old + gain * g
        m_error = gain * g_error + 4 * u * m
    if rule == Rule.LION:  # a sign, of a number that is too small for its error to leave it alone
        direction_error = (1 - f["beta1"]) * g_error + 4 * u * (f["beta1"] * old + (1 - f["beta1"]) * g)
        unsure = lion_direction(before, f).abs() <= direction_error
        u_error = f["lr"] * (2.0 * unsure + u)
    if rule == Rule.MOMENTUM:
        u_error = f["lr"] * (g_error + m_error + 5 * u * (m + g))
    if rule in (Rule.ADAM, Rule.AMSGRAD):
        v = f["beta2"] * before.exp_avg_sq.double() + (1 - f["beta2"]) * g * g
        v_error = (1 - f["beta2"]) * (2 * g + g_error) * g_error + 5 * u * v
        used = after.max_exp_avg_sq if rule == Rule.AMSGRAD else after.exp_avg_sq
        root = (1 - f["beta2"] ** count).rsqrt()
        denominator = root * used.sqrt() + f["eps"]
        relative = v_error / (2 * used) + 6 * u  # of the denominator: d sqrt(v) = dv / 2 sqrt(v)
        u_error = f["lr"] / (1 - f["beta1"] ** count) * (m_error + m * (relative + 3 * u)) / denominator
    u_error = u_error + 3 * u * decay

    moved = replace(before, mix=None).oracle(rule)
    theta_error = u_error + u * (moved.theta.abs() + x + decay)
    if before.mix is not None:
        blended = blended_error(before, moved.theta, u_error, segment_of, order)
        blended = blended + u * (after.theta.abs() + moved.theta.abs())  # two sums of the size of theta
        theta_error = torch.where(f["transfer"] != 0, blended, theta_error)
    ema = torch.zeros_like(x)
    if before.ema is not None:
        ema = (1 - f["ema"]) * theta_error + 3 * u * (before.ema.double().abs() + after.theta.abs())
    return Bounds(theta_error, m_error, v_error, v_error, ema)


def lion_direction(before: StepProblem, f: dict[str, Tensor]) -> Tensor:
    """[K, P], the number whose sign Lion takes."""
    x, weights = before.theta.double(), before.weights
    g = before.grads.double()[:, 0] if weights is None else torch.einsum("kt,ktp->kp", weights, before.grads.double())
    g = g / (1.0 if before.grad_scale is None else before.grad_scale.item())
    g = torch.where(f["maximize"] != 0, -g, g) + torch.where(f["decoupled"] != 0, 0.0, f["weight_decay"]) * x
    return f["beta1"] * before.exp_avg.double() + (1 - f["beta1"]) * g


def blended_error(before: StepProblem, moved: Tensor, u_error: Tensor, segment_of: Tensor, order: Order) -> Tensor:
    """Of u_k + sum_j N_kj (x_j - x_0), or of the sum over moved rows x + u: every difference, factor and sum."""
    rows = before.theta.shape[0]
    u = unit(before.theta.dtype)
    coupling = (before.mix - torch.eye(rows, dtype=torch.float64)).abs()
    coupling = coupling.expand(len(before.segments), rows, rows)[segment_of.clamp_min(0)]  # [P, K, K]
    x = before.theta.double()
    if order == Order.CONSENSUS:
        error, values, summed = u_error, x, (moved - x).abs()
    else:
        error = u_error + u * moved.abs()
        values, summed = moved, torch.zeros_like(x)
        error = error + torch.einsum("pkj,jp->kp", coupling, error + error[:1])
    summed = summed + torch.einsum("pkj,jp->kp", coupling, (values - values[:1]).abs())
    return error + (rows + 4) * u * summed
