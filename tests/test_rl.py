"Closed forms that the reinforcement learning of rr must meet, and what it must refuse."
import json, math

import pytest
import torch
from torch import nn

from rr.core import seeded
from rr.restorer import FlowPolicy, NanoFlowPolicy, QwenRestorer, add_lora, draw_noise, tiny_qwen_pipeline
from rr.diagnosis import Diagnosis, Finding
from rr.nano import NanoRestorerNet
from rr.rl import (GRPO, GRPOConfig, GaussianFlow, MetricGain, STEPS, SeverityReward, advantages, cps_step, euler_step,
                   log_probs_of, no_guard, noise_budget, path_ends, policy_loss, sample_with_log_probs,
                   sde_step, severity_reward, structure, train_lora, window_at, without_lora)

PAIRS = [(1., 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.)]


def random(*shape, seed=0): return torch.randn(*shape, generator=seeded(seed))


# Steps

@pytest.mark.parametrize('name', ['cps', 'sde'])
@pytest.mark.parametrize('t,t_next', PAIRS)
@pytest.mark.parametrize('anchor,scale', [(0., 1.), (0.4, 0.1)])
def test_no_noise_is_euler(name, t, t_next, anchor, scale):
    x, v = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1)
    step = STEPS[name](x, v, t, t_next, 0., anchor, scale)
    assert torch.allclose(step.next, euler_step(x, v, t, t_next).next, atol=1e-6)
    assert step.std == 0 and (step.log_prob == 0).all()


@pytest.mark.parametrize('eta', [0., 0.3, 0.8, 1.])
@pytest.mark.parametrize('t,t_next', PAIRS)
@pytest.mark.parametrize('scale', [1., 0.1])
def test_cps_keeps_the_noise_budget(eta, t, t_next, scale):
    assert noise_budget(cps_step, t, t_next, eta, scale) == pytest.approx(scale * t_next, abs=1e-6)


def test_cps_coefficients_on_an_exact_path():
    "From a true point of the path, the next point is (1-t') clean + t' anchor + noise of variance (s t')^2, exactly."
    clean, anchor, s, t, t_next = random(1, 1).expand(200_000, 1), 0.7, 0.3, 0.8, 0.5
    noise = random(200_000, 1, seed=1)
    start = anchor + s * noise
    x = (1 - t) * clean + t * start
    step = cps_step(x, start - clean, t, t_next, 0.8, anchor, s, generator=seeded(2))
    rest = step.next - (1 - t_next) * clean - t_next * anchor
    assert abs(rest.mean().item()) < 2e-3
    assert rest.std().item() == pytest.approx(s * t_next, rel=0.01)


def test_sde_adds_noise_that_nobody_takes_away():
    for t, t_next in PAIRS: assert noise_budget(sde_step, t, t_next, 0.7) > t_next + 1e-3


def test_path_ends_inverts_the_path():
    clean, noise, anchor = random(4, 3, 5, 5), random(4, 3, 5, 5, seed=1), random(4, 3, 5, 5, seed=2)
    start = anchor + 0.1 * noise
    ends = path_ends(0.6 * clean + 0.4 * start, start - clean, 0.4, anchor, 0.1)
    assert torch.allclose(ends.clean, clean, atol=1e-5) and torch.allclose(ends.noise, noise, atol=1e-4)


@pytest.mark.parametrize('name', ['cps', 'sde'])
def test_log_prob_is_the_gaussian_density(name):
    x, v = random(3, 2, 4, 4), random(3, 2, 4, 4, seed=1)
    step = STEPS[name](x, v, 0.75, 0.5, 0.6, generator=seeded(2))
    expected = torch.distributions.Normal(step.mean, step.std).log_prob(step.next).flatten(1).mean(1)
    assert torch.allclose(step.log_prob, expected, atol=1e-5)


def test_steps_say_what_they_cannot_do():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match='from 0 to 1'): cps_step(x, x, 1., 0.5, 1.5)
    with pytest.raises(ValueError, match='2 or more steps'): sde_step(x, x, 1., 0., 0.7)
    with pytest.raises(ValueError, match='generator'): cps_step(x, x, 1., 0.5, 0.5)


# Paths

@pytest.mark.parametrize('anchor,scale', [(0., 1.), (1.5, 0.4)])
def test_sde_and_ode_marginals_agree_on_gaussian_data(anchor, scale):
    "Exact velocity, small steps: at every time both have the mean and the spread of the flow (Flow-GRPO, section 4)."
    flow, times = GaussianFlow(2., 0.5, anchor, scale), torch.linspace(1, 0, 201).tolist()
    start = flow.start(torch.zeros(20_000, 1), 0)
    for name, eta in (('euler', 0.), ('sde', 0.7)):
        path = sample_with_log_probs(flow, None, start, times, eta, name, seeded(1)).trajectory
        for k in (50, 100, 150, 200):
            t = times[k]
            assert path[k].mean().item() == pytest.approx((1 - t) * 2 + t * anchor, abs=0.02)
            assert path[k].std().item() == pytest.approx(math.hypot((1 - t) * 0.5, t * scale), rel=0.03)


@pytest.mark.parametrize('name', ['cps', 'sde', 'euler'])
def test_ratio_is_exactly_one_before_the_first_update(name):
    flow = GaussianFlow(0.3, 0.5, 0.5, 0.1)
    rollout = sample_with_log_probs(flow, None, flow.start(torch.zeros(4, 3, 8, 8), 0), step=name, generator=seeded(1))
    assert torch.equal(log_probs_of(flow, None, rollout), rollout.log_probs)


def test_paths_are_seeded_and_differ_inside_a_group():
    flow = GaussianFlow()
    start = torch.zeros(2, 3, 4, 4)
    def images(seed): return sample_with_log_probs(flow, None, start, generator=seeded(seed)).images
    assert torch.equal(images(0), images(0)) and not torch.equal(images(0), images(1))
    assert not torch.equal(*images(0))


def test_the_last_cps_step_is_no_decision():
    flow = GaussianFlow()
    assert sample_with_log_probs(flow, None, torch.zeros(2, 1), generator=seeded(0)).decisions == [0, 1, 2]
    assert sample_with_log_probs(flow, None, torch.zeros(2, 1), step='sde', generator=seeded(0)).decisions == [0, 1, 2, 3]


# Reward

class FixedJudge:
    "A reasoner that reads the severity of all four kinds from the four corner pixels."
    def severity(self, images):
        return torch.stack([images[:, 0, i, j] for i in (0, -1) for j in (0, -1)], 1) * 100


def photo(*corners):
    image = torch.zeros(3, 16, 16)
    for (i, j), value in zip([(0, 0), (0, -1), (-1, 0), (-1, -1)], corners): image[:, i, j] = value
    return image


def test_severity_reward_by_hand():
    reward, terms = severity_reward(torch.tensor([[60., 0, 0, 30]]), torch.tensor([[0., 0, 0, 0], [30, 20, 0, 30]]),
                                    torch.tensor([0.9, 0.5]))
    assert reward.tolist() == pytest.approx([0.9 * 0.9, 0.5 * 0.3 - 0.2])
    assert terms['drop'].tolist() == pytest.approx([0.9, 0.3]) and terms['introduced'].tolist() == pytest.approx([0, 0.2])


def test_introduced_degradation_counts_even_without_content():
    reward, _ = severity_reward(torch.zeros(1, 4), torch.tensor([[0., 50, 0, 0]]), torch.zeros(1))
    assert reward.item() == pytest.approx(-0.5)


def test_reward_object():
    reward = SeverityReward(FixedJudge(), guard=no_guard)
    after = torch.stack([photo(0.2, 0, 0, 0.3), photo(0.6, 0.1, 0, 0.3)])
    assert reward(photo(0.6, 0, 0, 0.3), after).tolist() == pytest.approx([0.4, -0.1])
    assert torch.equal(reward(photo(0.6, 0, 0, 0.3), after), reward(photo(0.6, 0, 0, 0.3), after))
    assert set(reward.terms) == {'severity_before', 'severity_after', 'drop', 'introduced', 'guard'}
    only_noise = SeverityReward(FixedJudge(), {'noise': 2.}, no_guard)
    assert only_noise(photo(0.6, 0, 0, 0.3), photo(0, 0, 0, 0.1)).tolist() == pytest.approx([0.4])
    with pytest.raises(ValueError, match='snow'): SeverityReward(FixedJudge(), {'snow': 1.})
    with pytest.raises(ValueError, match='one size'): reward([photo(), torch.zeros(3, 8, 8)], [photo(), photo()])


@pytest.mark.parametrize('weights', [{}, {'noise': 0.}])
def test_a_reward_that_weighs_nothing_is_refused(weights):
    with pytest.raises(ValueError, match='every reward would be 0'): SeverityReward(FixedJudge(), weights)
    assert SeverityReward(FixedJudge()).weights.tolist() == [1.] * 4


def test_guards_see_content_and_not_contrast():
    image = torch.rand(1, 3, 64, 64, generator=seeded(0))
    image = nn.functional.interpolate(image[..., ::8, ::8], scale_factor=8, mode='bicubic').clamp(0, 1)
    foggy, grey = 0.4 * image + 0.5, torch.full_like(image, 0.5)
    noisy = (image + 0.05 * random(1, 3, 64, 64)).clamp(0, 1)
    assert structure(foggy, image).item() > 0.98 and structure(noisy, image).item() > 0.9
    assert structure(image, grey).item() < 0.2 and structure(image, image.flip(-1)).item() < 0.5
    assert structure(image, image).item() == pytest.approx(1, abs=1e-4)


def test_fidelity_asks_the_clean_photo():
    image = torch.rand(1, 3, 48, 48, generator=seeded(0))
    reward = SeverityReward(FixedJudge())
    reward(image, torch.cat([image, image.flip(-1)]), clean=image)
    assert reward.terms['guard'][0].item() == pytest.approx(1, abs=1e-5) and reward.terms['guard'][1] < 0.5


def test_metric_gain():
    clean = torch.rand(1, 3, 32, 32, generator=seeded(0)) * 0.5
    before, after = clean + 0.2, clean + 0.1
    assert MetricGain('psnr')(before, after, clean).item() == pytest.approx(20 * math.log10(2), abs=1e-2)
    with pytest.raises(ValueError, match='clean'): MetricGain('psnr')(before, after)


# Groups and loss

def test_advantages_are_standard_scores_of_the_group():
    rewards = torch.tensor([[0., 1, 2, 3], [5, 5, 5, 5]])
    adv = advantages(rewards)
    assert adv.values[0].tolist() == pytest.approx([(r - 1.5) / (math.sqrt(1.25) + 1e-4) for r in range(4)])
    assert adv.kept.tolist() == [True, False] and (adv.values[1] == 0).all()
    assert advantages(torch.tensor([[0.] * 99 + [1.]])).values.max() == 5


def test_group_of_one_is_refused_with_a_reason():
    with pytest.raises(ValueError, match='group size 1.*group of 4 or more'): advantages(torch.zeros(3, 1))
    with pytest.raises(ValueError, match='group size 1'): GRPO(GaussianFlow(), no_guard, GRPOConfig(group=1))
    with pytest.raises(ValueError, match='shape'): advantages(torch.zeros(3))


def test_clipped_ratios_get_no_gradient():
    log_prob = torch.tensor([0.1, -0.1, 0.1, -0.1], requires_grad=True)
    loss, ratio = policy_loss(log_prob, torch.zeros(4), torch.tensor([1., 1., -1., -1.]), clip=1e-4)
    loss.backward()
    assert (log_prob.grad != 0).tolist() == [False, True, True, False]
    assert torch.allclose(ratio, log_prob.exp())


@pytest.mark.parametrize('name', ['cps', 'sde'])
def test_policy_gradient_of_a_one_dimensional_flow(name):
    "v = theta: the mean of a step is linear in theta, so the gradient is -mean(A (x' - m) m' / std^2)."
    theta, t, t_next, eta = torch.tensor(0.7, requires_grad=True), 0.8, 0.5, 0.6
    x, advantage = random(256, 1), random(256, seed=2)
    old = STEPS[name](x, theta.detach().expand_as(x), t, t_next, eta, generator=seeded(1))
    new = STEPS[name](x, theta.expand_as(x), t, t_next, eta, taken=old.next)
    policy_loss(new.log_prob, old.log_prob, advantage)[0].backward()
    if name == 'cps': slope = -(1 - t_next) * t + (1 - t) * math.sqrt(t_next**2 - old.std**2)
    else: slope = -(t - t_next) - (old.std**2 / (2 * t)) * (1 - t)
    expected = -(advantage * (old.next - old.mean)[:, 0] * slope / old.std**2).mean()
    assert theta.grad.item() == pytest.approx(expected.item(), rel=1e-4)


def test_policy_gradient_estimates_the_gradient_of_the_expected_reward():
    "Reward x'^2 after one CPS step: d/dtheta E[x'^2] = 2 m m', which the estimator must give on average."
    theta, t, t_next, n = torch.tensor(0.7, requires_grad=True), 0.8, 0.5, 400_000
    x = torch.full((n, 1), 0.5)
    old = cps_step(x, theta.detach().expand_as(x), t, t_next, generator=seeded(1))
    reward = old.next[:, 0]**2
    new = cps_step(x, theta.expand_as(x), t, t_next, taken=old.next)
    policy_loss(new.log_prob, old.log_prob, reward - reward.mean())[0].backward()
    slope = -(1 - t_next) * t + (1 - t) * math.sqrt(t_next**2 - old.std**2)
    assert -theta.grad.item() == pytest.approx(2 * old.mean[0].item() * slope, rel=0.03)


# Trainer

class Blend(FlowPolicy):
    "A little network as a policy: clean = halfway from photo to x + convolution; start = photo + 0.1 eps."
    noise_scale = 0.1
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = self.net = nn.Conv2d(6, 3, 3, padding=1)
        nn.init.zeros_(self.net.weight)
    def condition(self, images, diagnoses): return images
    def anchor(self, cond): return cond
    def decode(self, x): return x
    def start(self, images, seed=0): return images + 0.1 * draw_noise(images.shape, seed)
    def velocity(self, x, t, cond):
        clean = cond + 0.5 * (x - cond) + self.net(torch.cat([x, cond], 1))
        return (x - clean) / t.view(-1, 1, 1, 1)


def brightness(before, after, clean=None): return after.flatten(1).mean(1)


def test_a_network_learns_what_is_rewarded(tmp_path):
    policy, photos = Blend(), [torch.full((3, 16, 16), 0.5), torch.full((3, 16, 24), 0.4)]
    trainer = GRPO(policy, brightness, GRPOConfig(group=8, lr=3e-3), log=tmp_path / 'log.jsonl')
    for _ in range(25): trainer.update(photos, [None, None])
    rewards = [r['reward'] for r in trainer.history]
    assert trainer.history[0]['ratio_off'] == 0
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.05
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert lines == trainer.history and [r['update'] for r in lines] == list(range(25))


def test_training_is_seeded():
    def run():
        policy = Blend()
        trainer = GRPO(policy, brightness, GRPOConfig(group=4, lr=1e-3))
        for _ in range(2): trainer.update([torch.full((3, 16, 16), 0.5)], [None])
        return policy.net.weight.detach()
    assert torch.equal(run(), run())


def test_a_group_without_spread_changes_nothing():
    policy = Blend()
    before = policy.net.weight.detach().clone()
    trainer = GRPO(policy, lambda before, after, clean=None: torch.ones(len(after)), GRPOConfig(group=4, lr=1.))
    record = trainer.update([torch.full((3, 16, 16), 0.5)], [None])
    assert record['dropped'] == 1 and torch.equal(policy.net.weight, before)


def test_clip_holds_later_epochs_near_the_first():
    trainer = GRPO(Blend(), brightness, GRPOConfig(group=4, lr=1e-2, epochs=3))
    assert trainer.update([torch.full((3, 16, 16), 0.5)], [None])['clipped'] > 0


def test_reference_holds_the_policy_back():
    def drift(kl):
        policy, reference = Blend(), Blend()
        trainer = GRPO(policy, brightness, GRPOConfig(group=8, lr=3e-3, kl=kl), reference=reference.velocity)
        for _ in range(10): record = trainer.update([torch.full((3, 16, 16), 0.5)], [None])
        return (policy.net.bias - reference.net.bias).norm().item(), record
    (free, _), (held, record) = drift(1e-9), drift(10.)
    assert held < 0.7 * free and record['kl'] > 0
    with pytest.raises(ValueError, match='reference'): GRPO(Blend(), brightness, GRPOConfig(kl=0.1))


@pytest.mark.parametrize('config', [dict(steps=1), dict(eta=0.), dict(step='euler'), dict(step='sde', eta=0.)])
def test_paths_that_take_no_chance_are_refused(config):
    with pytest.raises(ValueError, match='no step of a path takes a chance'): GRPO(Blend(), brightness, GRPOConfig(**config))
    with pytest.raises(ValueError, match='0 can take a chance'): window_at(GRPOConfig(**config, window=1), 0)


def test_nothing_to_train_is_said():
    frozen = Blend()
    frozen.net.requires_grad_(False)
    with pytest.raises(ValueError, match='nothing to train'): GRPO(frozen, brightness)


# Networks

def nano_policy():
    "The nano network with random weights everywhere, its last layer included."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NanoRestorerNet(widths=(16, 24, 32), depths=(1, 1, 1))
        nn.init.normal_(net.heads.weight, std=0.02)
    return NanoFlowPolicy(net)


def fog(): return Diagnosis({'fog': Finding(50, {'extinction': 1., 'airlight': 0.9, 'warmth': 0.})})


def test_nano_policy_ratios_are_exactly_one():
    policy = nano_policy()
    trainer = GRPO(policy, brightness, GRPOConfig(group=4))
    record = trainer.update([torch.rand(3, 40, 56, generator=seeded(0))], [fog()])
    assert record['ratio_off'] == 0 and record['dropped'] == 0 and record['grad_norm'] > 0


def test_lora_trains_alone_and_can_be_switched_off():
    plain, policy = nano_policy(), train_lora(nano_policy(), rank=2)
    x, t = torch.rand(2, 3, 32, 32, generator=seeded(0)), torch.full((2,), 0.5)
    cond = policy.condition(x, [fog()] * 2)
    with torch.no_grad(): before = plain.velocity(x, t, cond)
    assert torch.equal(policy.velocity(x, t, cond), before)
    names = {n for n, p in policy.module.named_parameters() if p.requires_grad}
    assert names and all('lora_' in n for n in names)
    frozen = {n: p.clone() for n, p in policy.module.named_parameters() if n not in names}
    reference = without_lora(policy)
    trainer = GRPO(policy, brightness, GRPOConfig(group=4, lr=1e-2, kl=0.01, epochs=2), reference=reference)
    for _ in range(2): record = trainer.update([x[0]], [fog()])
    assert record['kl'] > 0
    assert all(torch.equal(p, frozen[n]) for n, p in policy.module.named_parameters() if n in frozen)
    assert not torch.allclose(policy.velocity(x, t, cond), before)
    assert torch.equal(reference(x, t, cond), before)
    assert {n for n, p in policy.module.named_parameters() if p.requires_grad} == names


def test_qwen_image_edit_learns_by_the_same_trainer():
    "The stock diffusers pipeline, small and random, with a LoRA: one update, exact ratios, weights of the LoRA changed."
    restorer = QwenRestorer(tiny_qwen_pipeline(), pixels=64 * 64)
    add_lora(restorer.policy.module, rank=2, alpha=2)
    trainer = GRPO(restorer.policy, brightness, GRPOConfig(group=2, steps=3, lr=1e-2))
    before = [p.detach().clone() for p in trainer.parameters]
    record = trainer.update([torch.rand(3, 48, 64, generator=seeded(0))], [fog()])
    assert record['ratio_off'] == 0 and record['grad_norm'] > 0
    assert any(not torch.equal(p, b) for p, b in zip(trainer.parameters, before))
