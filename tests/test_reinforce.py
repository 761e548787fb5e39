"A run of reinforcement learning: windows, ratios, DiffusionNFT, curriculum, resuming, several processes, the command."
import json, os, subprocess, sys

import pytest
import torch
from torch import nn

import rr.reinforce
from rr.core import bundled_photos, read_photo, seeded, to_pil
from rr.data import PairStream, Recipe
from rr.diagnosis import Diagnosis
from rr.nano import NanoRestorerNet, load_nano_restorer
from rr.finetune import TowerTrainer, TowerTraining
from rr.nano import NanoTower
from rr.reasoner import Reasoner
from rr.reasoner_rl import VerifiableReward
from rr.reinforce import (Curriculum, DiffusionNFT, GradientConfig, NFTConfig, RewardGradient, Run, RunSettings, change_table, judge_mark, main, measure, merge_lora, moved,
                          nft_loss, pairs_mark, rows_are_of, run_identity, write_rows)
from rr.restorer import NanoFlowPolicy, NanoRestorer
from rr.degrade import KINDS
from rr.rl import (GRPO, STEPS, SeverityReward, GaussianFlow, GRPOConfig, MetricGain, no_guard, normalised_log_ratio, sample_with_log_probs, step_of, step_weights,
                   train_lora, window_at)
from test_rl import Blend, brightness


GREY = [torch.full((3, 16, 16), 0.5), torch.full((3, 16, 24), 0.4)]


# Windows

def test_outside_the_window_a_path_follows_the_velocity():
    flow = GaussianFlow(mean=torch.tensor(0.2), std=0.1)
    start = flow.start(torch.zeros(3, 1, 4, 4))
    path = sample_with_log_probs(flow, None, start, 6, generator=seeded(0), window=(2, 4))
    plain = sample_with_log_probs(flow, None, start, 6, eta=0.)
    assert path.decisions == [2, 3] and torch.equal(path.trajectory[:3], plain.trajectory[:3])
    assert not torch.equal(path.trajectory[3], plain.trajectory[3])
    for k in range(6): assert torch.equal(step_of(flow, None, path, k).log_prob, path.log_probs[k])


def test_the_window_moves_from_first_to_last_and_begins_again():
    config = GRPOConfig(steps=5, window=2, shift=3)  # of five steps of CPS, four take a chance
    assert [window_at(config, u) for u in range(0, 12, 3)] == [(0, 2), (1, 3), (2, 4), (0, 2)]
    assert window_at(config, 2) == (0, 2) and window_at(GRPOConfig(), 7) is None
    assert window_at(GRPOConfig(steps=5, step='sde', window=5), 9) == (0, 5)
    with pytest.raises(ValueError, match='4 can take a chance'): window_at(GRPOConfig(steps=5, window=5), 0)


def test_only_the_window_is_trained():
    trainer, asked = GRPO(Blend(), brightness, GRPOConfig(group=4, steps=5, window=1, shift=1, lr=1e-3)), []
    velocity = trainer.policy.velocity
    def spy(x, t, cond):
        if torch.is_grad_enabled(): asked.append(float(t[0]))
        return velocity(x, t, cond)
    trainer.policy.velocity = spy
    for _ in range(3): trainer.update(GREY, [None, None])
    assert asked == pytest.approx([1., 1., .8, .8, .6, .6])


# Ratios as in GRPO-Guard

@pytest.mark.parametrize('name,eta', [('cps', .8), ('sde', .7)])
def test_normalised_ratios_are_centred_and_of_one_size(name, eta):
    old, new = GaussianFlow(mean=torch.tensor(0.2), std=0.1), GaussianFlow(mean=torch.tensor(0.23), std=0.1)
    path = sample_with_log_probs(old, None, old.start(torch.zeros(8000, 1, 4, 4)), 5, eta, name, seeded(0))
    for k in path.decisions:
        now = step_of(new, None, path, k)
        plain, normal = now.log_prob - path.log_probs[k], normalised_log_ratio(now, path.log_probs[k], path.means[k])
        shift = (now.mean - path.means[k]).square().flatten(1).mean(1)
        assert plain.mean().item() == pytest.approx(-(shift / (2 * now.std**2)).mean().item(), abs=5 * plain.std().item() / 8000**.5)
        assert abs(normal.mean().item()) < 5 * normal.std().item() / 8000**.5
        assert normal.std().item() == pytest.approx((shift.mean() / 16).sqrt().item(), rel=.05)  # z * shift, averaged over 16 numbers


@pytest.mark.parametrize('name,eta', [('cps', .8), ('sde', .7)])
def test_step_weights_make_a_change_of_velocity_count_alike(name, eta):
    flow = GaussianFlow(mean=torch.tensor(0.2), std=0.1)
    path = sample_with_log_probs(flow, None, flow.start(torch.zeros(2, 1, 4, 4)), 5, eta, name, seeded(0))
    weights, x = step_weights(path), torch.randn(2, 1, 4, 4, generator=seeded(3))
    moves = [(STEPS[name](x, x + 1, *path.times[k:k + 2], eta, taken=x).mean - STEPS[name](x, x, *path.times[k:k + 2], eta, taken=x).mean).abs().mean() * weights[k]
             for k in path.decisions]
    assert torch.allclose(torch.stack(moves), moves[0].expand(len(moves)), rtol=1e-4)
    assert sum(weights) == pytest.approx(len(path.decisions))
    assert all((w > 0) == (k in path.decisions) for k, w in enumerate(weights))


def test_normalised_ratios_are_one_before_the_first_update_and_learn():
    trainer = GRPO(Blend(), brightness, GRPOConfig(group=8, lr=3e-3, ratio_norm=True, clip=1e-2))
    for _ in range(25): trainer.update(GREY, [None, None])
    rewards = [r['reward'] for r in trainer.history]
    assert trainer.history[0]['ratio_off'] == 0 and sum(rewards[-5:]) > sum(rewards[:5]) + .25


# DiffusionNFT

@pytest.mark.parametrize('beta', [.1, 1.])
def test_first_gradient_is_marked_flow_matching(beta):
    clean, start, t = (torch.randn(6, 3, 4, generator=seeded(0)), torch.randn(6, 3, 4, generator=seeded(1)), torch.linspace(.1, 1, 6))
    x, good = clean + t.view(-1, 1, 1) * (start - clean), torch.linspace(0, 1, 6)
    v = torch.randn(6, 3, 4, generator=seeded(2)).requires_grad_()
    nft_loss(clean, x, t, v, v.detach(), good, beta).sum().backward()
    off = (x - t.view(-1, 1, 1) * v - clean).detach()
    closed = (2 * good - 1).view(-1, 1, 1) * beta * -t.view(-1, 1, 1) * 2 * off / 12 / off.abs().mean((1, 2), keepdim=True)
    assert torch.allclose(v.grad, closed, atol=1e-6)


@pytest.mark.parametrize('good,wanted', [(1., -.5), (.5, .5), (0., 1.5)])
def test_nft_loss_is_smallest_where_the_mark_asks_for(good, wanted):
    "The clean image is 0, the old estimate of it 0.5, beta 0.5: a good mark asks for twice the way there, a bad one for as much away."
    clean, x, t, old = torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1), torch.full((1, 1), .5)
    v = old.clone().requires_grad_()
    optimizer = torch.optim.SGD([v], lr=.02)
    for _ in range(2000):
        optimizer.zero_grad(); nft_loss(clean, x, t, v, old, torch.tensor([good]), .5).sum().backward(); optimizer.step()
    assert (x - v).item() == pytest.approx(wanted, abs=.03)


def test_nft_learns_what_is_rewarded_and_its_old_weights_follow():
    flow = GaussianFlow(mean=nn.Parameter(torch.tensor(0.2)), std=0.1)
    trainer = DiffusionNFT(flow, lambda before, after, clean=None: -(after - .8).flatten(1).mean(1).abs(), NFTConfig(group=24, lr=.02))
    for _ in range(60): trainer.update([torch.zeros(1, 1, 1)], [None])
    assert abs(flow.mean.item() - .8) < .15
    assert .02 < abs(trainer.old[0].item() - .2) and 'kl' not in trainer.history[-1]


def test_a_group_of_equal_rewards_teaches_nft_nothing():
    policy = Blend()
    before = policy.net.weight.detach().clone()
    record = DiffusionNFT(policy, lambda b, a, c=None: torch.zeros(len(a)), NFTConfig(group=4)).update(GREY, [None, None])
    assert torch.equal(policy.net.weight, before) and record['dropped'] == 2


# Curriculum

def test_hard_photos_come_more_often_and_none_is_forgotten():
    c = Curriculum(4, floor=5.)
    c.saw([0, 1, 2, 3], torch.tensor([95., 45., 15., 0.]))
    drawn = torch.bincount(torch.tensor([c.draw(1, seeded(k))[0] for k in range(6000)]), minlength=4) / 6000
    assert torch.allclose(drawn, torch.tensor([100., 50., 20., 5.]) / 175, atol=.03)
    assert len(set(c.draw(4, seeded(0)))) == 4
    alike = Curriculum(4, hardness=0.); alike.saw([0], torch.tensor([500.]))
    assert abs(sum(alike.draw(1, seeded(k))[0] == 0 for k in range(2000)) / 2000 - .25) < .04


# Runs

def nothing(photos): return [Diagnosis()] * len(photos)

def stream(): return PairStream(list(bundled_photos().values()), 48, Recipe(max_kinds=2), seed=3)

def make_run(folder, updates, kind=GRPO, **settings):
    config = (GRPOConfig if kind is GRPO else NFTConfig)(group=4, lr=1e-3, steps=2)
    return Run(kind(Blend(), brightness, config), stream(), nothing, folder, RunSettings(updates=updates, photos=2, pool=6, save_every=2, **settings))

def told(history): return [{k: v for k, v in r.items() if k != 'seconds'} for r in history]


@pytest.mark.parametrize('kind', [GRPO, DiffusionNFT])
def test_a_run_that_was_killed_ends_where_it_would_have_ended(tmp_path, kind):
    whole = make_run(tmp_path / 'whole', 6, kind)
    whole.go()
    first = make_run(tmp_path / 'cut', 6, kind)
    for _ in range(5):  # killed after five updates, the last checkpoint is that of the fourth
        first.update()
        if len(first.trainer.history) in (2, 4): first.save()
    again = make_run(tmp_path / 'cut', 6, kind)
    assert len(again.trainer.history) == 4
    again.go()
    assert told(again.trainer.history) == told(whole.trainer.history)
    assert torch.equal(again.trainer.policy.net.weight, whole.trainer.policy.net.weight)
    assert torch.equal(again.curriculum.left, whole.curriculum.left)
    lines = [json.loads(line) for line in (tmp_path / 'cut/log.jsonl').read_text().splitlines()]
    assert [r['update'] for r in lines] == list(range(6))


def test_the_running_average_lags_behind_and_survives_a_kill(tmp_path):
    whole, cut = (make_run(tmp_path / name, 6, average=.7) for name in ('whole', 'cut'))
    weight = whole.trainer.policy.net.weight
    path = [weight.detach().clone()]
    for _ in range(6):
        whole.update()
        path.append(weight.detach().clone())
    expected = path[0]
    for i, now in enumerate(path[1:]): expected = expected.lerp(now, 1 - min(.7, (i + 2) / (i + 11)))
    with whole.averaged(): assert torch.allclose(weight, expected) and not torch.equal(weight, path[-1])
    assert torch.equal(weight, path[-1]), 'afterwards the run can go on'
    for _ in range(3): cut.update()
    cut.save()
    again = make_run(tmp_path / 'cut', 6, average=.7)
    again.go()
    assert all(torch.equal(value, whole.average.weights[key]) for key, value in again.average.weights.items())
    with pytest.raises(ValueError, match='another run average:'): make_run(tmp_path / 'cut', 6)
    plain = make_run(tmp_path / 'plain', 2)
    plain.go()
    last = plain.trainer.policy.net.weight.detach().clone()
    with plain.averaged(): assert torch.equal(plain.trainer.policy.net.weight, last), 'without an average it is the weights'


def test_a_folder_of_another_run_is_refused(tmp_path):
    make_run(tmp_path, 2).go()
    with pytest.raises(ValueError, match='another run hardness:'): make_run(tmp_path, 4, hardness=0.)
    with pytest.raises(ValueError, match='another method, step, eta'): make_run(tmp_path, 4, DiffusionNFT)
    assert len(make_run(tmp_path, 4).go()) == 4


def lora_run(folder, rank=2, off=0., **stream):
    torch.manual_seed(0)
    net = NanoRestorerNet(widths=(16, 24, 32), depths=(1, 1, 1))
    with torch.no_grad(): net.heads.bias.add_(off)
    photos = dict(photos=list(bundled_photos().values()), size=48, recipe=Recipe(max_kinds=2), seed=3) | stream
    return Run(GRPO(train_lora(NanoFlowPolicy(net), rank), brightness, GRPOConfig(group=2, steps=2)), PairStream(**photos), nothing, folder, RunSettings(updates=1, photos=1, pool=2))

@pytest.mark.parametrize('other,named', [
    (dict(photos=list(bundled_photos().values())[1:]), 'stream photos, stream fingerprint'), (dict(size=64), 'stream size'), (dict(recipe=Recipe(max_kinds=1)), 'stream recipe'),
    (dict(seed=4), 'stream seed'), (dict(mirrored=True), 'stream mirrored'), (dict(off=.1), 'base weights'), (dict(rank=1), r'LoRA rank \(shapes that train\)')])
def test_a_run_on_other_photos_or_networks_is_refused(tmp_path, other, named):
    lora_run(tmp_path).save()
    lora_run(tmp_path)
    with pytest.raises(ValueError, match=f'another {named}: take another folder'): lora_run(tmp_path, **other)


def test_a_run_with_another_judge_is_refused():
    class Judge:
        def __init__(self, weight): self.model = nn.Linear(1, 1); nn.init.constant_(self.model.weight, weight); nn.init.zeros_(self.model.bias)
    policy = Blend()
    marks = [run_identity(GRPO(policy, SeverityReward(Judge(w))), RunSettings(), stream())['judge'] for w in (1., 1., 2.)]
    assert marks[0] == marks[1] != marks[2] and marks[0] == judge_mark(Judge(1.)) and judge_mark(None) == ''


def test_a_run_with_another_reward_is_refused():
    class Judge:
        def severity(self, images): return torch.zeros(len(images), len(KINDS))
    asked = lambda reward: run_identity(GRPO(Blend(), reward), RunSettings(), stream())
    differ = lambda a, b: [k for k in a if a[k] != b.get(k)]
    plain = asked(SeverityReward(Judge()))
    assert differ(plain, asked(SeverityReward(Judge()))) == []
    assert differ(plain, asked(SeverityReward(Judge(), weights={'rain': 2.}))) == ['reward weights']
    assert differ(plain, asked(SeverityReward(Judge(), guard=no_guard))) == ['reward guard']
    assert asked(MetricGain('psnr'))['reward name'] == 'psnr' and 'reward' in differ(plain, asked(VerifiableReward()))
    assert differ(asked(VerifiableReward()), asked(VerifiableReward(severity=.7, tolerance=40.))) == ['reward weights', 'reward tolerance']


def test_a_checkpoint_without_photos_and_networks_is_refused(tmp_path):
    run = make_run(tmp_path, 2)
    run.asked = {k: v for k, v in run.asked.items() if not k.startswith(('stream', 'judge', 'base', 'LoRA'))}
    run.save()
    with pytest.raises(ValueError, match='did not note its photos and networks'): make_run(tmp_path, 2)


def test_a_run_of_a_gpu_goes_on_without_one(tmp_path, monkeypatch):
    run = make_run(tmp_path, 2)
    run.update()
    with monkeypatch.context() as m:
        m.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
        run.save()
    again = make_run(tmp_path, 2)
    assert again.trainer.history == run.trainer.history and again.curriculum.left.device.type == 'cpu'
    again.go()


def test_more_photos_than_the_pool_has_are_refused(tmp_path):
    with pytest.raises(ValueError, match='7 different photos an update cannot be drawn from a pool of 6'):
        Run(GRPO(Blend(), brightness), stream(), nothing, tmp_path / 'run', RunSettings(photos=7, pool=6))
    assert not (tmp_path / 'run').exists()


def test_rewards_above_one_leave_nothing_and_the_run_goes_on(tmp_path):
    run = make_run(tmp_path, 3)
    run.trainer.reward = lambda before, after, clean=None: 3 + after.flatten(1).mean(1)  # as a gain in dB
    run.go()
    assert run.curriculum.left.min() == 0 and set(run.curriculum.left.tolist()) <= {0., 100.}


def test_rows_are_those_of_their_note(tmp_path):
    pairs, path = [stream()[i] for i in range(3)], tmp_path / 'before.jsonl'
    of = dict(pairs=pairs_mark(pairs), base='a')
    assert not rows_are_of(path, of)
    path.write_text('{}\n')  # without a note: of nobody knows what
    assert not rows_are_of(path, of)
    write_rows(path, [dict(a=1)], of)
    assert rows_are_of(path, of) and path.read_text() == '{"a": 1}\n'
    other = PairStream(list(bundled_photos().values()), 48, Recipe(max_kinds=1), seed=3)
    for change in (dict(pairs=pairs_mark(pairs[:2])), dict(pairs=pairs_mark([other[i] for i in range(3)])), dict(base='b')):
        assert not rows_are_of(path, of | change)


def test_the_log_is_written_as_the_run_goes_on(tmp_path):
    run = make_run(tmp_path, 4)
    run.update()  # before the first checkpoint
    lines = (tmp_path / 'log.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.trainer.history
    assert make_run(tmp_path, 4).trainer.history == [] and (tmp_path / 'log.jsonl').read_text() == ''


def test_the_curriculum_hears_of_severities_where_the_reward_knows_them(tmp_path):
    run = make_run(tmp_path, 1)
    def reward(before, after, clean=None):
        reward.terms = dict(severity_after=torch.full((len(after), 7), 4.))
        return after.flatten(1).mean(1)
    run.trainer.reward = reward
    run.go()
    assert sorted(run.curriculum.left.tolist()) == [28., 28., 100., 100., 100., 100.]


def test_two_processes_do_what_one_does(tmp_path):
    script = tmp_path / 'job.py'
    script.write_text("""
import sys, torch
from rr.core import processes, rank
from rr.flow import join_processes
from test_reinforce import GRPO, DiffusionNFT, make_run
torch.set_num_threads(1); join_processes('cpu')
open(f'{sys.argv[1]}-{rank()}-of-{processes()}', 'w').close()
for kind in (GRPO, DiffusionNFT): make_run(sys.argv[1] + kind.__name__, 3, kind).go()
""")
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    together = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', script, tmp_path / 'two'],
                              env=env, capture_output=True, text=True, timeout=300)
    assert together.returncode == 0, together.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.glob('two-*')) == ['two-0-of-2', 'two-1-of-2']
    for kind in (GRPO, DiffusionNFT):
        alone = make_run(tmp_path / f'one{kind.__name__}', 3, kind)
        alone.go()
        state = torch.load(tmp_path / f'two{kind.__name__}' / 'checkpoint.pt', weights_only=True)
        assert torch.allclose(state['trainer']['parameters'][0], alone.trainer.parameters[0], atol=1e-6)
        assert torch.allclose(state['left'], alone.curriculum.left, atol=1e-4)
        assert len(state['trainer']['history']) == len(alone.trainer.history) == 3
        for a, b in zip(state['trainer']['history'], alone.trainer.history):
            assert a['reward'] == pytest.approx(b['reward'], abs=1e-6) and a['grad_norm'] == pytest.approx(b['grad_norm'], rel=1e-4)


# The gradient of the judge

def test_a_moved_frame_shows_a_part_of_each_image():
    images, seen = torch.arange(2 * 3 * 20 * 30.).reshape(2, 3, 20, 30), set()
    for seed in range(60):
        part = moved(images, 4, seeded(seed))
        assert part.shape == (2, 3, 16, 26)
        back = part if part[0, 0, 0, 0] < part[0, 0, 0, 1] else part.flip(-1)
        top, left = divmod(int(back[0, 0, 0, 0]), 30)
        assert torch.equal(back, images[..., top:top + 16, left:left + 26])
        seen.add((top, left, back is part))
    assert {t for t, _, _ in seen} == {l for _, l, _ in seen} == {0, 1, 2, 3, 4} and {m for _, _, m in seen} == {True, False}
    assert torch.equal(moved(images, 0, seeded(0)).sort().values, images)


@pytest.fixture(scope='module')
def judge(): return Reasoner.from_pretrained('nano', device='cpu')

def gradient_run(judge, folder, updates, **settings):
    torch.manual_seed(0)
    net = NanoRestorerNet(widths=(16, 24, 32), depths=(1, 1, 1))
    for layer in (net.heads, net.gate): nn.init.normal_(layer.weight, std=.02)
    told = lambda photos: [Diagnosis.from_dict({'noise': {'severity': 60}, 'fog': {'severity': 40}})] * len(photos)
    pairs = PairStream(list(bundled_photos().values()), 64, Recipe(('noise',)), seed=3)
    trainer = RewardGradient(NanoFlowPolicy(net), SeverityReward(judge), GradientConfig(lr=3e-3, jitter=8))
    return Run(trainer, pairs, told, folder, RunSettings(updates=updates, photos=2, pool=2, save_every=2, **settings))

def test_the_gradient_of_the_judge_goes_through_several_steps_to_the_weights(judge, tmp_path):
    trainer = gradient_run(judge, tmp_path, 1).trainer
    photos, told = torch.rand(2, 3, 64, 64, generator=seeded(0)), [Diagnosis.from_dict({'noise': {'severity': 60}})] * 2
    for trainer.config.steps in (1, 3):
        with torch.no_grad():
            cond, x = trainer.policy.condition(photos, told), torch.cat([trainer.policy.start(photos[i:i + 1], 5 + i) for i in range(2)])
            times = trainer.policy.times(trainer.config.steps, x).tolist()
            for t, after in zip(times, times[1:]): x = x - (t - after) * trainer.policy.velocity(x, torch.full((2,), t), cond)
        restored = trainer.restored(photos, told, [5, 6])
        assert torch.allclose(restored, x.clamp(0, 1), atol=1e-5) and restored.requires_grad

def test_the_reward_rises_and_the_judge_stays(judge, tmp_path):
    before = [p.clone() for p in judge.model.parameters()]
    history = gradient_run(judge, tmp_path, 12).go()
    gained = lambda rows: sum(r['reward'] - r['distance'] for r in rows) / len(rows)
    assert gained(history[-3:]) > gained(history[:3]) + .05
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(judge.model.parameters(), before))

def test_a_killed_run_along_the_gradient_goes_on(judge, tmp_path):
    whole = gradient_run(judge, tmp_path / 'whole', 4)
    whole.go()
    gradient_run(judge, tmp_path / 'cut', 2).go()
    again = gradient_run(judge, tmp_path / 'cut', 4)
    assert len(again.trainer.history) == 2
    again.go()
    assert told(again.trainer.history) == told(whole.trainer.history)
    assert all(torch.equal(a, b) for a, b in zip(again.trainer.parameters, whole.trainer.parameters))


# The nano restorer

def test_a_share_of_a_lora_lies_between_before_and_after():
    def merged(strength):
        torch.manual_seed(0)
        policy = train_lora(NanoFlowPolicy(NanoRestorerNet(widths=(16, 24, 32), depths=(1, 1, 1))), rank=2)
        for n, p in policy.module.named_parameters():
            if 'lora_B' in n: nn.init.normal_(p, std=.05)
        return merge_lora(policy.module, strength).state_dict()
    before, half, after = merged(0.), merged(.5), merged(1.)
    for key in before: assert torch.allclose(half[key], (before[key] + after[key]) / 2, atol=1e-6)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_merged_lora_is_the_network_with_it():
    torch.manual_seed(0)
    net = NanoRestorerNet(widths=(16, 24, 32), depths=(1, 1, 1))
    nn.init.normal_(net.heads.weight, std=.02)
    names = set(net.state_dict())
    policy = train_lora(NanoFlowPolicy(net), rank=2)
    for n, p in policy.module.named_parameters():
        if 'lora_B' in n: nn.init.normal_(p, std=.05)
    x, t = torch.rand(2, 3, 32, 32, generator=seeded(0)), torch.full((2,), .5)
    cond = policy.condition(x, [Diagnosis.from_dict({'noise': {'severity': 60}})] * 2)
    with torch.no_grad():
        before = policy.velocity(x, t, cond)
        merge_lora(policy.module)
        assert torch.allclose(policy.velocity(x, t, cond), before, atol=1e-5)
    assert set(policy.module.state_dict()) == names


@pytest.mark.parametrize('method', ['grpo', 'nft', 'gradient'])
def test_command(tmp_path, method):
    photos = tmp_path / 'photos'
    photos.mkdir()
    for name, path in list(bundled_photos().items())[:3]: to_pil(read_photo(path).image[:, :128, :128]).save(photos / f"{name}.png")
    args = [str(photos), str(tmp_path / 'out'), '--method', method, '--updates', '2', '--batch', '1', '--group', '2', '--steps', '2', '--size', '96', '--pool', '2', '--threads', '1']
    main(args)
    net, shipped = load_nano_restorer(tmp_path / 'out/weights'), NanoRestorer.from_pretrained().policy.module
    assert net.config == shipped.config and any(not torch.equal(a, b) for a, b in zip(net.state_dict().values(), shipped.state_dict().values()))
    assert len((tmp_path / 'out/log.jsonl').read_text().splitlines()) == 2
    again = load_nano_restorer(tmp_path / 'out/correction')
    for key, value in net.state_dict().items(): assert torch.allclose(again.state_dict()[key], value, atol=2e-3), key
    assert (tmp_path / 'out/correction/correction.safetensors').stat().st_size < .2 * (tmp_path / 'out/weights/model.safetensors').stat().st_size


def test_command_with_a_second_opinion(tmp_path, monkeypatch):
    photos = list(bundled_photos().values())[:1]
    TowerTrainer(NanoTower(32), [PairStream(photos, 96)], tmp_path / 'other', TowerTraining(batch=2)).save()
    folder = str(photos[0].parent)
    args = [folder, str(tmp_path / 'out'), '--method', 'gradient', '--updates', '1', '--batch', '1', '--size', '96', '--pool', '1', '--threads', '1', '--held-out', folder,
            '--other-judge', str(tmp_path / 'other'), '--held-out-count']
    main([*args, '4'])
    before, after = ([json.loads(line) for line in (tmp_path / f'out/{name}.jsonl').read_text().splitlines()] for name in ('before', 'after'))
    assert len(before) == len(after) == 4 and all(0 <= r['left_other'] <= 400 and r['left_judge'] >= 0 for r in before + after)
    assert [r['photo'] for r in before] == [r['photo'] for r in after] and before != after
    asked = []
    monkeypatch.setattr(rr.reinforce, 'measure', lambda restorer, pairs, *_: asked.append(len(pairs)) or before[:len(pairs)])
    for count in '42': main([*args, count])
    assert asked == [4, 2, 2], 'after; before and after of other photos'
    with pytest.raises(ValueError, match='another base weights'): main([*args, '2', '--restorer', 'nano-rl'])


def test_measure_counts_what_is_left():
    class Judge:
        def severity(self, photos): return torch.stack([torch.full((7,), float(p.mean()) * 10) for p in photos])
    class Half:
        def restore(self, photos, diagnoses, steps): return [p / 2 for p in photos]
    pairs = [stream()[i] for i in range(3)]
    rows = measure(Half(), pairs, [Diagnosis()] * 3, {'judge': Judge()}, batch=2)
    assert [r['photo'] for r in rows] == [p.name for p in pairs]
    for r, p in zip(rows, pairs): assert r['left_judge'] == pytest.approx(float(p.degraded.clamp(0, 1).mean()) * 35, abs=1e-3)


def change_row(name, photo, psnr, left, seed=1, other=0.): return dict(condition='mixed', restorer=name, photo=photo, seed=seed, psnr_before=9., psnr_after=psnr, left_judge=left, left_other=other)


def test_changes_are_paired_by_photo():
    easy, hard = (20., 10.), (30., 90.)
    rows = [change_row('a', str(i), *(hard if i % 2 else easy)) for i in range(8)] + [change_row('b', str(i), p + .5, .8 * l) for i in range(8) for p, l in [hard if i % 2 else easy]]
    rows += [change_row('a', 'clean', float('inf'), 0.), change_row('b', 'clean', float('inf'), 0.)]
    table = change_table(rows[::-1], 'a')  # in any order
    assert len(table) == 1 and table[0]['restorer'] == 'b' and table[0]['photos'] == table[0]['damages'] == 9
    assert table[0]['PSNR, dB'] == '+0.50 [+0.50, +0.50]', 'photos differ by 10 dB, the restorers by half of one'
    assert table[0]['better'] == '8 of 8' and table[0]['worst, dB'] == .5
    assert table[0]['left, judge'] == '44.4 to 35.6' and table[0]['change, judge, %'] == '-20 [-20, -20]'
    assert table[0]['change, other, %'] == '', 'nothing was left'


def test_damages_of_one_photo_are_not_independent():
    drops = [2., 4., 6., 8., 10., 30.]
    def rows(damages): return [change_row(n, str(i), 20., 50. - d * (n == 'b'), s, 40. - d / 2 * (n == 'b')) for i, d in enumerate(drops) for s in range(damages) for n in 'ab']
    once, often = (change_table(rows(k), 'a')[0] for k in (1, 5))
    assert often['damages'] == 30 and often['photos'] == once['photos'] == 6
    assert often['change, judge, %'] == once['change, judge, %'], 'the same damage again adds no certainty'
    assert once['gain seen by other'] == '0.50 [0.50, 0.50]'
    worse = [r | dict(left_judge=100 - r['left_judge']) for r in rows(1)]
    assert 'gain seen by other' not in change_table(worse, 'a')[0], 'no gain, no share of it'
