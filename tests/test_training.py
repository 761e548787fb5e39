"The training loops learn, resume after a kill without losing a step, and mask what must not be learnt."
import itertools, json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from rr.core import asset, bundled_photos, read_photo, seeded, write_photo
from rr.data import PairStream, Recipe, clean_photos, made_ahead
from rr.diagnosis import Diagnosis, Finding, diagnosis_vectors
from rr.degrade import KINDS
from rr.finetune import (ChatCollator, ReasonerData, Rehearsal, TowerJudge, TowerTrainer, TowerTraining, answer_start, change_eyes, column_kinds, freeze_words, head_loss, run_trainer,
    rehearse, sample_texts, see, scored_tokens, severity_columns, stack_views, streams_of_sizes, weighted_loss)
from rr.flow import learning_rate as flow_rate
from rr.restorer import QwenRestorer, add_lora, tiny_qwen_pipeline
from rr.flow import (EncodedPairs, FlowBatches, FlowTrainer, FlowTraining, LoraTrainer, LoraTraining, Predictions, WeightAverage, cut_again, fixed_length, flow_loss, make_batch,
    encode_pairs, velocity_loss, with_alarms, with_predictions, with_text)
from rr.nano import (NanoRestorerNet, NanoTower, build_nano_reasoner, first_guesses, nano_image_processor, load_nano_reasoner, nano_processor, nano_reasoner_config,
    nano_views, save_nano_reasoner, train_tokenizer)
from rr.diagnosis import Scene

PHOTOS = next(iter(bundled_photos().values())).parent

def small_net(): return NanoRestorerNet(widths=(16, 16, 16), depths=(1, 1, 1))

def test_restorer_loss_falls_on_one_batch():
    torch.manual_seed(0)
    stream, net = PairStream(clean_photos(PHOTOS), 96, Recipe(kinds=('fog',), max_kinds=1, severity=(60, 90))), small_net()
    batch = make_batch([stream[0], stream[1]], 64, 2)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        loss = flow_loss(net, batch, seeded(0))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < .6 * losses[0], losses[::10]

def test_untrained_restorer_returns_the_photo():
    x = torch.rand(2, 3, 32, 48)
    assert torch.equal(small_net()(x, torch.ones(2), x), torch.zeros_like(x))

def test_untrained_denoiser_returns_the_photo_and_a_trained_one_is_told_the_level():
    from rr.nano import NanoDenoiser
    net, x = NanoDenoiser((8, 8, 8), (1, 1, 1)), torch.rand(2, 3, 32, 48)
    assert torch.equal(net(x, torch.tensor([0., 20.])), torch.zeros_like(x))
    torch.nn.init.normal_(net.out.weight)
    same = x[:1].expand(2, -1, -1, -1)
    told = net(same, torch.tensor([10., 30.]))
    assert not torch.allclose(told[0], told[1]) and torch.allclose(net(same, torch.tensor([10., 10.]))[1], told[0], atol=1e-5)

def test_noise_batches_hold_what_was_asked_for():
    from rr.flow import NOISE_ONLY, NoiseBatches
    batches = NoiseBatches(PairStream(clean_photos(PHOTOS), 64, NOISE_ONLY), FlowTraining(pairs=60, patch=32, patches=1))
    noisy, clean, sigma = batches(0)
    assert noisy.shape == clean.shape == (60, 3, 32, 32) and sigma.shape == (60,)
    assert all(torch.equal(a, b) for a, b in zip(batches(0), (noisy, clean, sigma))) and not torch.equal(batches(1)[0], noisy)
    outside = ((noisy < 0) | (noisy > 1)).flatten(1).any(1)
    assert .1 < outside.float().mean() < .5 and .2 < (sigma == 0).float().mean() < .6
    by_camera = NoiseBatches(batches.stream, FlowTraining(pairs=40, patch=32, patches=1), unclipped=0., camera=1.)(0)
    weak = ((by_camera[0] - by_camera[1]).flatten(1).std(1) * 255)
    assert not by_camera[2].any() and weak.max() < 16 and by_camera[0].min() >= 0 and by_camera[0].max() <= 1
    told = sigma > 0
    level = (noisy - clean).flatten(1).std(1) * 255
    assert torch.corrcoef(torch.stack([level[told & outside], sigma[told & outside]]))[0, 1] > .9

def test_denoiser_learns_and_resumes(tmp_path):
    from rr.flow import NOISE_ONLY, DenoiserTrainer, denoised_psnr
    from rr.nano import NanoDenoiser, load_nano_denoiser
    def trainer(folder):
        torch.manual_seed(0)
        stream = PairStream(clean_photos(PHOTOS), 64, NOISE_ONLY)
        return DenoiserTrainer(NanoDenoiser((16, 16, 16), (1, 1, 1)), stream, folder,
                               FlowTraining(minutes=9, pairs=4, patch=48, patches=1, learning_rate=3e-3, warmup=0.))
    first = trainer(tmp_path / 'a')
    before = denoised_psnr(clean_photos(PHOTOS)[:2], (50,), 96)(first.net)
    for _ in range(150): first.train_step()
    after = denoised_psnr(clean_photos(PHOTOS)[:2], (50,), 96)(first.net)
    assert after['sigma 50'] > before['sigma 50'] + 1 and after['sigma 50, not told'] > before['sigma 50, not told'] + 1, (before, after)
    first.save()
    second = trainer(tmp_path / 'a')
    assert second.step == 150 and abs(first.train_step() - second.train_step()) < 1e-5
    saved, average = load_nano_denoiser(tmp_path / 'a').state_dict(), torch.load(tmp_path / 'a/checkpoint.pt', weights_only=True)['average']
    assert all(torch.allclose(saved[k], average[k], atol=1e-2) for k in average)
    with pytest.raises(FileNotFoundError, match='no model.safetensors'): load_nano_denoiser(tmp_path / 'nothing')

def test_average_follows_the_weights():
    net = small_net()
    average = WeightAverage(net)
    with torch.no_grad():
        for p in net.parameters(): p.fill_(1.)
    for _ in range(200): average.update(net)
    assert all((w - 1).abs().max() < .02 for w in average.weights.values())

KILLED = """
import sys, torch
from rr.flow import *
from rr.nano import *
from rr.data import *
torch.manual_seed(0)
s = FlowTraining(minutes=60, pairs=1, patches=1, patch=32, save_every=.01)
t = FlowTrainer(NanoRestorerNet(widths=(16, 16, 16), depths=(1, 1, 1)), PairStream(clean_photos(sys.argv[1]), 64), sys.argv[2], s)
t.fit()
"""

def test_kill_leaves_a_whole_checkpoint_to_go_on_from(tmp_path):
    steps = []
    for _ in range(2):
        run = subprocess.Popen([sys.executable, '-c', KILLED, str(PHOTOS), str(tmp_path)])
        until, before = time.time() + 120, steps[-1] if steps else 0
        while time.time() < until:
            time.sleep(.3)
            log = (tmp_path/'log.jsonl').read_text().splitlines() if (tmp_path/'log.jsonl').exists() else []
            if log and log[-1].endswith('}') and json.loads(log[-1])['step'] > before: break
        run.send_signal(signal.SIGKILL); run.wait()
        trainer = FlowTrainer(small_net(), PairStream(clean_photos(PHOTOS), 64), tmp_path, FlowTraining(minutes=60))
        steps.append(trainer.step)
    assert 0 < steps[0] < steps[1], steps

def test_a_share_of_the_pairs_gets_the_diagnosis_of_the_reasoner():
    stream, said = PairStream(clean_photos(PHOTOS), 48), Diagnosis({'rain': Finding(3)})
    pairs, asked = [stream[i] for i in range(40)], []
    def predict(pairs): asked.extend(pairs); return [said] * len(pairs)
    half = with_predictions(pairs, predict, [i % 3 == 0 for i in range(40)])
    assert [i for i, (a, b) in enumerate(zip(pairs, half)) if a.diagnosis != b.diagnosis] == list(range(0, 40, 3))
    assert all(half[i].diagnosis == said for i in range(0, 40, 3)) and all(a is b for a, b in zip(asked, pairs[::3]))
    assert all(a.clean is b.clean and a.degraded is b.degraded for a, b in zip(pairs, half))
    batches = FlowBatches(stream, FlowTraining(pairs=40, patch=16, predicted=.5), predict)
    assert 12 < sum(d == said for d in batches(0)[1]) < 28
    assert said not in FlowBatches(stream, FlowTraining(pairs=40, patch=16))(0)[1]

def test_false_alarms_are_of_kinds_that_are_not_there():
    stream = PairStream(clean_photos(PHOTOS), 48)
    pairs = [stream[i] for i in range(60)]
    true = [p.diagnosis for p in pairs]
    blind = [replace(p, diagnosis=Diagnosis()) if i % 2 else p for i, p in enumerate(pairs)]  # a reasoner that misses every second one
    changed = with_alarms(blind, true, .5, seeded(0), most=70)
    hit = [(b, t, c) for b, t, c in zip(blind, true, changed) if b.diagnosis != c.diagnosis]
    assert 20 < len(hit) < 40
    offered = {(k, f.severity) for p in blind for k, f in p.diagnosis.findings.items()}
    for before, truth, after in hit:
        (kind,) = set(after.diagnosis.present) - set(before.diagnosis.present)
        assert kind not in truth.findings and after.diagnosis.severity(kind) <= 70 and (kind, after.diagnosis.severity(kind)) in offered
        assert {k: after.diagnosis.findings[k] for k in before.diagnosis.findings} == before.diagnosis.findings and after.clean is before.clean
    assert with_alarms(pairs, true, 0., seeded(0)) == pairs
    assert with_alarms(pairs[:1], true[:1], 1., seeded(0)) == pairs[:1]  # nobody to borrow from
    told = FlowBatches(stream, FlowTraining(pairs=40, patch=16, alarms=.5))(0)[1]
    plain = FlowBatches(stream, FlowTraining(pairs=40, patch=16))(0)[1]
    assert 10 < sum(a != b for a, b in zip(told, plain)) < 30 and told == FlowBatches(stream, FlowTraining(pairs=40, patch=16, alarms=.5))(0)[1]

def test_predictions_are_made_once_and_survive(tmp_path):
    stream, asked = PairStream(clean_photos(PHOTOS), 48), []
    pairs = [stream[i] for i in range(4)]
    def diagnose(photos): asked.extend(photos); return [Diagnosis({'rain': Finding(3 + i)}) for i in range(len(photos))]
    predict = Predictions(diagnose, tmp_path/'p.jsonl')
    first = predict(pairs[:3])
    assert predict(pairs[1:]) == [*first[1:], Diagnosis({'rain': Finding(3)})] and len(asked) == 4
    assert Predictions(None, tmp_path/'p.jsonl')(pairs[:3]) == first
    with open(tmp_path/'p.jsonl', 'a') as f: f.write('{"photo": "half')  # killed while it wrote
    assert Predictions(None, tmp_path/'p.jsonl')(pairs[:3]) == first and (tmp_path/'p.jsonl').read_text().count('\n') == 4
    other = [replace(p, degraded=p.clean) for p in pairs[:1]]  # same name and seed, other pixels
    assert len(predict.unknown(other)) == 1 and not predict.unknown(pairs)

def test_a_pool_of_pairs_comes_again(tmp_path):
    torch.manual_seed(0)
    stream, seen = PairStream(clean_photos(PHOTOS), 96), []
    class Watched:
        def __getitem__(self, i): seen.append(i); return stream[i]
    diagnose = lambda photos: [Diagnosis({'rain': Finding(3)}) for _ in photos]
    trainer = FlowTrainer(small_net(), Watched(), tmp_path, FlowTraining(pairs=2, patch=64, pool=3, predicted=1.), diagnose=diagnose)
    for _ in range(3): trainer.train_step()
    assert seen == [0, 1, 2, 0, 1, 2] and len((tmp_path/'predictions.jsonl').read_text().splitlines()) == 3
    seen.clear()
    fresh = FlowTrainer(small_net(), Watched(), tmp_path/'true', FlowTraining(pairs=2, patch=64, pool=3))  # nobody to ask: always new pairs
    for _ in range(3): fresh.train_step()
    assert seen == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match='pool'): FlowTrainer(small_net(), stream, tmp_path/'x', FlowTraining(workers=1), diagnose=diagnose)

def test_other_processes_make_the_same_batches():
    stream = PairStream(clean_photos(PHOTOS), 96, seed=3)
    settings = FlowTraining(pairs=2, patch=32)
    here, there = (made_ahead(FlowBatches(stream, settings), 5, workers) for workers in (0, 2))
    for _ in range(3):
        (a, said_a), (b, said_b) = next(here), next(there)
        assert torch.equal(a.photo, b.photo) and torch.equal(a.numbers, b.numbers) and said_a == said_b

class Oracle:
    "Always the same diagnosis; counts the photos on disk, for it is asked in other processes."
    def __init__(self, counter): self.counter = counter
    def __call__(self, photos):
        with open(self.counter, 'a') as f: f.write('.' * len(photos))
        return [Diagnosis({'rain': Finding(3)}) for _ in photos]

def test_a_pool_is_asked_about_ahead_and_only_once(tmp_path):
    stream, counter = PairStream(clean_photos(PHOTOS), 48), tmp_path/'asked'
    settings = FlowTraining(minutes=1e-9, pairs=2, patch=16, predicted=1., pool=40, workers=2)
    trainer = FlowTrainer(small_net(), stream, tmp_path, settings, diagnose=Oracle(counter))
    trainer.predict([stream[i] for i in (0, 33)])  # a run without workers had got so far
    trainer.fit()
    assert len(counter.read_text()) == 64 and len((tmp_path/'predictions.jsonl').read_text().splitlines()) == 64, 'two parts of 32'
    trainer.train_step()  # workers find everything known
    again = FlowTrainer(small_net(), stream, tmp_path, settings, diagnose=Oracle(counter))
    again.ask_ahead()
    assert len(counter.read_text()) == 64

def test_times_of_the_flow_have_nothing_to_do_with_whose_diagnosis_it_is(tmp_path, monkeypatch):
    import rr.flow
    said, seen = Diagnosis({'rain': Finding(3)}), []
    trainer = FlowTrainer(small_net(), PairStream(clean_photos(PHOTOS), 32), tmp_path, FlowTraining(pairs=16, patch=16, predicted=.5),
                          diagnose=lambda photos: [said] * len(photos))
    made = trainer.batch
    def watched(step):
        batch, diagnoses = made(step)
        seen.append([d == said for d in diagnoses])
        return batch, diagnoses
    trainer.batch, times = watched, []
    def loss(net, batch, generator):
        times.append(rr.flow.sample_times(16, generator, start_share=0.))
        return sum(p.sum() for p in net.parameters())
    monkeypatch.setattr(rr.flow, 'flow_loss', loss)
    for _ in range(20): trainer.train_step()
    asked, t = torch.tensor(seen).flatten(), torch.cat(times)
    assert abs(t[asked].mean() - t[~asked].mean()) < .12, 'about .5 when the same random numbers serve twice'

def test_patches_are_cut_again_from_whole_photos():
    stream = PairStream(clean_photos(PHOTOS), 96, seed=3)
    whole = make_batch([stream[0], stream[1]], 96, 1, seeded(0), guess=True)
    assert torch.equal(whole.place, torch.tensor([[0., 0, 1, 1]] * 2))
    assert torch.equal(whole.guesses, first_guesses(whole.photo, whole.numbers))
    embed = lambda diagnoses: (torch.arange(2.)[:, None, None].expand(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
    whole = fixed_length(with_text(whole, [p.diagnosis for p in (stream[0], stream[1])], embed), 8)
    cut = cut_again(whole, 32, 3, seeded(1))
    assert cut.photo.shape == (6, 3, 32, 32) and cut.text.shape == (6, 8, 4) and cut.text_mask.sum(1).tolist() == [5] * 6
    for i, (top, left, bottom, right) in enumerate((cut.place * 96).round().int().tolist()):
        assert bottom - top == right - left == 32
        for name in ('photo', 'clean', 'guesses'):
            assert torch.equal(getattr(cut, name)[i], getattr(whole, name)[i // 3][:, top:bottom, left:right]), name
        assert torch.equal(cut.numbers[i], whole.numbers[i // 3]) and cut.text[i, 0, 0] == i // 3

def test_a_restorer_learns_from_replays_and_resumes(tmp_path):
    torch.manual_seed(0)
    stream = PairStream(clean_photos(PHOTOS), 96, Recipe(kinds=('fog',), max_kinds=1, severity=(60, 90)))
    settings = FlowTraining(minutes=60, pairs=2, patches=2, patch=48, replays=4, kept=32, learning_rate=2e-3)
    trainer = FlowTrainer(small_net(), stream, tmp_path, settings)
    trainer.elapsed = 5  # past the warm-up
    fixed = make_batch([stream[i] for i in range(900, 908)], 48, 4)
    with torch.no_grad(): before = flow_loss(trainer.net, fixed, seeded(0))
    for _ in range(48): trainer.train_step()
    with torch.no_grad(): after = flow_loss(trainer.net, fixed, seeded(0))
    assert trainer.batches.count == 16 + 2 * 11, 'eight batches before the first update, then one for every four'
    assert after < before - .15, (before, after)
    trainer.save()
    assert FlowTrainer(small_net(), stream, tmp_path, settings).step == 48

def test_training_on_predictions_asks_the_shipped_reasoner(tmp_path, capsys):
    from rr.flow import main
    main([str(PHOTOS), str(tmp_path), '--reasoner', str(asset('nano-reasoner')), '--predicted', '.5', '--size', '160', '--pairs', '2', '--patches', '1',
          '--minutes', '.02'])
    assert json.loads((tmp_path/'log.jsonl').read_text().splitlines()[-1])['step'] >= 1
    with pytest.raises(SystemExit): main([str(PHOTOS), str(tmp_path/'x'), '--predicted', '.5'])
    with pytest.raises(SystemExit): main([str(PHOTOS), str(tmp_path/'x'), '--reasoner', str(asset('nano-reasoner')), '--predicted', '.5', '--size', '4096'])
    assert 'no photo has 4096 pixels' in capsys.readouterr().err

def test_samples_are_drawn_with_every_report(tmp_path):
    torch.manual_seed(0)
    stream = PairStream(clean_photos(PHOTOS), 96)
    pairs = [stream[0], stream[1]]
    trainer = FlowTrainer(small_net(), stream, tmp_path, FlowTraining(minutes=1e-9, pairs=2, patch=32), samples=pairs)
    trainer.fit()
    grid = read_photo(tmp_path/'samples.png').image
    assert grid.shape == (3, 192, 288)
    for i, p in enumerate(pairs):
        row = grid[:, 96 * i:96 * (i + 1)]
        assert (row[..., :96] - p.degraded.clamp(0, 1)).abs().max() < .01 and (row[..., 192:] - p.clean).abs().max() < .01

TOGETHER = """
import sys, torch
from rr.core import processes, rank
from rr.data import PairStream
from rr.flow import FlowTrainer, FlowTraining, join_processes
from test_training import PHOTOS, clean_photos, small_net
torch.set_num_threads(1); join_processes('cpu')
torch.manual_seed(0)
trainer = FlowTrainer(small_net(), PairStream(clean_photos(PHOTOS), 64), sys.argv[1], FlowTraining(minutes=60, pairs=2, patch=32))
for _ in range(3): trainer.train_step()
trainer.save(); trainer.report()
torch.save([p.detach() for p in trainer.net.parameters()], f'{sys.argv[1]}/{rank()}-of-{processes()}.pt')
"""

def test_two_processes_take_the_step_of_their_mean_gradient(tmp_path):
    script = tmp_path/'job.py'
    script.write_text(TOGETHER)
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', script, tmp_path], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path/f'{i}-of-2.pt') for i in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second)), 'both hold the same weights'
    torch.manual_seed(0)
    net, settings = small_net(), FlowTraining(minutes=60, pairs=2, patch=32)
    optimizer, batches = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay), FlowBatches(PairStream(clean_photos(PHOTOS), 64), settings)
    net.train()
    for step in range(3):
        optimizer.zero_grad()
        for i in (2 * step, 2 * step + 1): (flow_loss(net, batches(i)[0], seeded(2**31 + i)) / 2).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        for group in optimizer.param_groups: group['lr'] = flow_rate(settings, 0.)
        optimizer.step()
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(first, net.parameters()))
    assert len((tmp_path/'log.jsonl').read_text().splitlines()) == 1, 'only the first process writes'

def qwen_lora(folder, **settings):
    torch.manual_seed(0)
    restorer = QwenRestorer(tiny_qwen_pipeline(), pixels=64 * 64, negative_prompt=None)
    add_lora(restorer.policy.module, rank=4, alpha=8)
    stream = PairStream(clean_photos(PHOTOS), 64, Recipe(min_kinds=1))
    encode_pairs(restorer.policy, [stream[i] for i in range(3)], folder/'pairs')
    return restorer, LoraTrainer(restorer.policy, EncodedPairs(folder/'pairs'), folder, LoraTraining(**(dict(steps=4, accumulate=2, learning_rate=3e-3, save_every=2) | settings)))

def test_encoded_pairs_are_what_the_policy_says_and_are_made_once(tmp_path):
    restorer, trainer = qwen_lora(tmp_path)
    stream = PairStream(clean_photos(PHOTOS), 64, Recipe(min_kinds=1))
    clean, cond = trainer.pairs[1]
    want = restorer.policy.condition(stream[1].degraded[None].clamp(0, 1), [stream[1].diagnosis])
    assert torch.allclose(clean, restorer.policy.encode(stream[1].clean[None])) and torch.allclose(cond.photo_tokens, want.photo_tokens) and torch.allclose(cond.text, want.text)
    assert len(trainer.pairs) == 3 and cond.negative is None
    times = [p.stat().st_mtime_ns for p in trainer.pairs.files]
    encode_pairs(None, [None] * 3, tmp_path/'pairs')  # nothing is left to do
    assert times == [p.stat().st_mtime_ns for p in trainer.pairs.files]
    with pytest.raises(FileNotFoundError, match='no encoded pairs'): EncodedPairs(tmp_path/'none')

def test_the_exact_velocity_has_no_loss():
    from rr.rl import GaussianFlow
    class Straight(GaussianFlow):
        def velocity(self, x, t, cond): return (x - self.goal) / t.view(-1, 1)
    policy = Straight()
    policy.goal = torch.randn(5, 4, generator=seeded(0))
    t, noise = torch.linspace(.1, 1, 5), torch.randn(5, 4, generator=seeded(1))
    assert velocity_loss(policy, policy.goal, None, t, noise).max() < 1e-9
    policy.velocity = lambda x, t, cond: (x - policy.goal) / t.view(-1, 1) + 1
    assert torch.allclose(velocity_loss(policy, policy.goal, None, t, noise), torch.ones(5), atol=1e-5)

def test_a_lora_of_the_large_restorer_learns_and_nothing_else_moves(tmp_path):
    restorer, trainer = qwen_lora(tmp_path, steps=60)
    frozen = {n: p.clone() for n, p in restorer.policy.module.named_parameters() if not p.requires_grad}
    losses = [trainer.train_step() for _ in range(60)]
    assert sum(losses[-15:]) < sum(losses[:15]) * .97
    assert all(torch.equal(p, frozen[n]) for n, p in restorer.policy.module.named_parameters() if n in frozen)

def test_a_killed_lora_run_ends_where_it_would_have_ended(tmp_path):
    _, whole = qwen_lora(tmp_path/'whole')
    whole.fit()
    _, cut = qwen_lora(tmp_path/'cut')
    for _ in range(3):  # killed after three updates, the checkpoint is that of the second
        cut.train_step()
        if cut.step == 2: cut.save()
    _, again = qwen_lora(tmp_path/'cut')
    assert again.step == 2
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters, whole.parameters))

def test_the_command_tunes_a_large_restorer_from_its_folder(tmp_path):
    from rr.flow import main
    tiny_qwen_pipeline().save_pretrained(tmp_path/'qwen')
    args = [str(PHOTOS), str(tmp_path/'out'), '--restorer', str(tmp_path/'qwen'), '--rank', '2', '--steps', '2', '--pairs', '1', '--pool', '2', '--size', '64', '--pixels', str(64 * 64)]
    main(args)
    tuned = QwenRestorer.from_pretrained(tmp_path/'qwen', device='cpu', lora=tmp_path/'out'/'lora', pixels=64 * 64, negative_prompt=None)
    assert any('lora' in n for n, _ in tuned.policy.module.named_parameters())
    assert json.loads((tmp_path/'out'/'log.jsonl').read_text().splitlines()[-1])['step'] == 2

    with pytest.raises(ValueError, match='begun with other settings .pixels'): main(args[:-1] + [str(96 * 96)])
    (tmp_path/'out'/'pairs'/'.rr-left.pt').write_bytes(b'half')  # by a kill
    assert len(EncodedPairs(tmp_path/'out'/'pairs')) == 2 and len(EncodedPairs(tmp_path/'out'/'pairs', most=1)) == 1
    main(args)
    assert not (tmp_path/'out'/'pairs'/'.rr-left.pt').exists()

def test_each_size_has_defaults_of_its_own(tmp_path, monkeypatch, capsys):
    import rr.flow
    asked = {}
    monkeypatch.setattr(rr.flow, 'tune_lora', lambda a, *_: asked.update(vars(a)))
    rr.flow.main([str(PHOTOS), str(tmp_path), '--restorer', 'large', '--pixels', str(144 * 144)])
    assert (asked['size'], asked['learning_rate'], asked['pairs']) == (144, 1e-4, 8)
    with pytest.raises(SystemExit): rr.flow.main([str(PHOTOS), str(tmp_path), '--restorer', 'large', '--minutes', '5'])
    assert '--minutes is for the nano networks' in capsys.readouterr().err

def test_a_tower_judges_as_its_trainer_measured(tmp_path):
    torch.manual_seed(0)
    stream = PairStream(clean_photos(PHOTOS), 160)
    trainer = TowerTrainer(NanoTower(32), [stream], tmp_path, TowerTraining(batch=2))
    trainer.save()
    pairs, judge = [stream[i] for i in range(4)], TowerJudge.from_checkpoint(tmp_path)
    found, true = judge.severity([p.degraded for p in pairs]), torch.tensor([[float(p.diagnosis.severity(k)) for k in KINDS] for p in pairs])
    assert found.shape == (4, len(KINDS)) and ((found >= 0) & (found <= 100)).all()
    trainer.tower.eval()
    assert (found - true).abs().mean(0).tolist() == pytest.approx(list(trainer.errors(pairs).values()), abs=.01)
    with pytest.raises(FileNotFoundError): TowerJudge.from_checkpoint(tmp_path/'nothing')

def test_a_tower_starts_from_another_and_its_eyes_go_to_a_reasoner(tmp_path):
    torch.manual_seed(0)
    stream = PairStream(clean_photos(PHOTOS), 160, Recipe(kinds=('noise',), max_kinds=1))
    settings = TowerTraining(minutes=1e-9, batch=2)  # no update: what the start alone does
    first = TowerTrainer(NanoTower(256), [stream], tmp_path/'a', settings)
    first.fit()
    gist = first.tower.gist
    assert gist.mean.any() and gist.scale.min() > 0 and not torch.equal(gist.scale, torch.ones_like(gist.scale))
    state = torch.load(tmp_path/'a'/'tower.pt', weights_only=True)
    state['tower'] = {k: v for k, v in state['tower'].items() if not k.startswith('gist.')}  # as before there was a gist
    torch.save(state, tmp_path/'old.pt')
    second = TowerTrainer(NanoTower(256), [stream], tmp_path/'b', settings)
    second.start_from(tmp_path/'old.pt')
    assert second.step == 0 and torch.equal(second.tower.project.weight, first.tower.project.weight) and not second.tower.gist.mean.any()
    reasoner, _ = load_nano_reasoner()
    eyes, known = reasoner.model.visual, reasoner.model.visual.project.weight.clone()
    change_eyes(reasoner, tmp_path/'a'/'tower.pt')
    assert torch.equal(eyes.body[1].weight, first.tower.body[1].weight) and torch.equal(eyes.gist.mean, gist.mean)
    assert torch.equal(eyes.project.weight, known)

def test_tower_learns_and_resumes(tmp_path):
    torch.manual_seed(0)
    stream = PairStream(clean_photos(PHOTOS), 160, Recipe(kinds=('noise',), max_kinds=1, clean_share=.3))
    trainer = TowerTrainer(NanoTower(32), [stream], tmp_path, TowerTraining(minutes=60, batch=4))
    trainer.elapsed = 5  # past the warm-up
    losses = [trainer.train_step() for _ in range(40)]
    assert sum(losses[-8:]) < sum(losses[:8]), losses
    trainer.save()
    again = TowerTrainer(NanoTower(32), [stream], tmp_path, trainer.settings)
    assert again.step == 40 and again.train_step() == pytest.approx(trainer.train_step(), rel=1e-3)
    often = TowerTrainer(NanoTower(32), [stream], tmp_path/'often', TowerTraining(minutes=60, batch=4, replays=3, kept=64))
    for _ in range(4): often.train_step()
    assert often.step == 4 and often.batches.count == 36, 'eight batches before the first update, a ninth after the third'

def test_a_rehearsal_is_kept(tmp_path):
    settings = dict(per_device_train_batch_size=2, learning_rate=1e-3)
    model, processor = rehearse(tmp_path, [Scene()], 1, **settings)
    again, other = rehearse(tmp_path, [Scene()], 10**6, **settings)  # would take days
    assert other.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    same = lambda name: torch.allclose(again.state_dict()[name], model.state_dict()[name].cpu(), atol=1e-3)
    assert same('model.language_model.layers.0.mlp.up_proj.weight') and same('model.visual.project.weight')

def test_parameters_of_absent_kinds_cost_nothing():
    stream = PairStream(clean_photos(PHOTOS), 96, Recipe(kinds=('noise',), max_kinds=1))
    target = diagnosis_vectors([stream[0].diagnosis])
    numbers = target.clone()
    logits = torch.where(target[:, severity_columns()] > 0, 20., -20.)
    assert head_loss(numbers, logits, target) < 1e-6
    rain = (column_kinds() == KINDS.index('rain')) & torch.tensor([i not in severity_columns() for i in range(target.shape[1])])
    numbers[:, rain] += 5
    assert head_loss(numbers, logits, target) < 1e-6

@pytest.fixture(scope='module')
def processor(): return nano_processor(train_tokenizer(sample_texts([Scene('indoor', 'flash', 'a room', ('cup',), 'the rim')], 400), 700))

def test_only_the_answer_is_learnt(processor):
    stream = PairStream(clean_photos(PHOTOS), 96)
    pairs = [stream[i] for i in range(5)]
    batch = ChatCollator(processor)(pairs)
    for ids, labels, weights, pair in zip(batch['input_ids'], batch['labels'], batch['loss_weights'], pairs):
        cot = pair.diagnosis.to_cot()
        assert processor.tokenizer.decode(labels[labels != -100]) == cot + '<|im_end|>\n'
        heavy = ids[(weights > 1) & (labels != -100)]
        assert processor.tokenizer.decode(heavy) == cot[:cot.index('\n4.')]
        assert (labels[:answer_start(ids, processor.tokenizer)] == -100).all()

def test_digits_are_single_tokens_and_text_survives(processor):
    tokenizer = processor.tokenizer
    assert all(len(tokenizer.encode(str(d), add_special_tokens=False)) == 1 for d in range(10))
    for text in ('1. Identify: fog.\n2. Quantify: fog 042, rain 100.', 'naïve “quotes” 中文 \t tabs', '{"a":[1.5,-2]}'):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text

def test_words_go_on_with_the_pairs_that_come_next(processor, tmp_path):
    def train():
        torch.manual_seed(0)
        model = build_nano_reasoner(nano_reasoner_config(processor.tokenizer, hidden_size=32, layers=1, heads=2, key_value_heads=1))
        run_trainer(model, Rehearsal([Scene()]), ChatCollator(processor, None), tmp_path, max_steps=4, save_steps=2, save_total_limit=4,
                    per_device_train_batch_size=2, warmup_steps=0)
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    through = train()
    shutil.rmtree(tmp_path/'checkpoint-4')  # as if killed before
    assert torch.allclose(train(), through, atol=1e-6)
    shutil.rmtree(tmp_path/'checkpoint-4')
    shutil.rmtree(tmp_path/'checkpoint-2')
    assert torch.allclose(train(), through, atol=1e-6)

def test_kinds_and_severities_can_weigh_more_than_their_parameters(processor):
    pair = PairStream(clean_photos(PHOTOS), 224, Recipe(min_kinds=2, max_kinds=2))[1]
    batch = ChatCollator(processor, opening_weight=2., severity_weight=7.)([pair])
    ids, weights = batch['input_ids'][0], batch['loss_weights'][0]
    told = lambda w: processor.tokenizer.decode(ids[(weights == w) & (batch['labels'][0] != -100)])
    cot = pair.diagnosis.to_cot()
    assert told(7.) == cot[:cot.index('\n3.')]
    assert told(2.) == cot[cot.index('\n3.'):cot.index('\n4.')]
    assert (ChatCollator(processor)([pair])['loss_weights'] == 4.).any() and not (ChatCollator(processor)([pair])['loss_weights'] > 4.).any()

def test_there_is_a_stream_for_each_size_that_some_photo_has(tmp_path):
    for side in (240, 330): write_photo(tmp_path/f'{side}.png', torch.rand(3, side, side + 40, generator=seeded(0)))
    streams = streams_of_sizes(clean_photos(tmp_path), {}, seed=5, sizes=(224, 320, 448))
    assert [s.size for s in streams] == [224, 320] and [len(s.photos) for s in streams] == [2, 1] and [s.seed for s in streams] == [5, 6]
    assert streams[1][0].degraded.shape == (3, 320, 320)
    more = streams_of_sizes(clean_photos(tmp_path), {}, seed=5, sizes=(224, 320), mirrored=(448,))
    assert [s.size for s in more] == [224, 320, 448] and [len(s.photos) for s in more] == [2, 1, 2] and more[2].seed == 7 and more[2].mirrored
    assert more[2][0].degraded.shape == (3, 448, 448) and torch.equal(more[1][3].degraded, streams[1][3].degraded)

def test_eyes_learn_through_words_that_stay_as_they_are(processor, tmp_path):
    model = build_nano_reasoner(nano_reasoner_config(processor.tokenizer, hidden_size=32, layers=1, heads=2, key_value_heads=1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pairs = PairStream(clean_photos(PHOTOS), 224, Recipe(stored_share=.5))
    run_trainer(freeze_words(model), ReasonerData([pairs]), ChatCollator(processor, opening_share=1.), tmp_path, max_steps=2, per_device_train_batch_size=2,
                warmup_steps=0, weight_decay=0.)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all('visual' in k for k in changed) and any('visual.body' in k for k in changed)

def test_replayed_pairs_come_about_as_often_as_asked_and_go_on_where_they_stopped():
    stream = PairStream(clean_photos(PHOTOS), 48)
    data = ReasonerData([stream], replays=3, kept=5)
    seen = [p.seed for p in itertools.islice(data, 60)]
    made = {stream[i].seed: i for i in range(20)}
    assert set(seen) <= made.keys() and len(set(seen)) > 12
    assert all(made[s] <= n // 3 for n, s in enumerate(seen)), 'a pair that was not made yet'
    assert seen == [p.seed for p in itertools.islice(data, 60)] and next(iter(data)).clean is None
    again = next(iter(ReasonerData([stream], start=30, replays=3, kept=5)))
    assert again.seed == stream[10].seed and torch.equal(again.degraded, stream[10].degraded)
    assert next(iter(ReasonerData([stream], start=30))).seed == stream[30].seed

class Counted(PairStream):
    "A stream that notes which pairs it makes."
    def __getitem__(self, i):
        self.made = getattr(self, 'made', []) + [i]
        return super().__getitem__(i)

def test_each_process_makes_its_own_pairs_only_and_of_every_size(monkeypatch):
    photos = clean_photos(PHOTOS)
    monkeypatch.setenv('WORLD_SIZE', '3')
    shares = []
    for rank in range(3):
        monkeypatch.setenv('RANK', str(rank))
        streams = [Counted(photos, size) for size in (32, 48, 64)]
        sides = [p.degraded.shape[-1] for p in itertools.islice(ReasonerData(streams, start=5), 6)]
        assert sorted(sides) == [32, 32, 48, 48, 64, 64]
        shares.append({i for s in streams for i in s.made})
    assert set.union(*shares) == set(range(5, 23)) and sum(map(len, shares)) == 18
    monkeypatch.setenv('RANK', '1')  # two workers share what falls to a process
    loader = torch.utils.data.DataLoader(Rehearsal([Scene()], start=1), 2, collate_fn=lambda pairs: [p.seed for p in pairs], num_workers=2)
    assert sorted(itertools.chain(*itertools.islice(loader, 4))) == [3, 4, 9, 10, 15, 16, 21, 22]

def test_scores_are_made_from_the_first_answer_on(processor, tmp_path):
    model = build_nano_reasoner(nano_reasoner_config(processor.tokenizer, hidden_size=32, layers=1, heads=2, key_value_heads=1))
    batch = ChatCollator(processor)([PairStream(clean_photos(PHOTOS), 224)[i] for i in range(2)])
    labels, weights = batch.pop('labels'), batch.pop('loss_weights')
    n = scored_tokens(labels)
    assert n < labels.shape[1] and (labels[:, :-n + 1] == -100).all() and (labels[:, -n + 1] != -100).any()
    with torch.no_grad(): whole, end = model(**batch).logits, model(**batch, logits_to_keep=n).logits
    assert end.shape[1] == n
    assert weighted_loss(end, labels[:, -n:], weights[:, -n:]).item() == pytest.approx(weighted_loss(whole, labels, weights).item(), rel=1e-5)
    assert scored_tokens(torch.zeros(2, 5, dtype=torch.long)) == 5 and scored_tokens(torch.full((2, 5), -100)) == 5

def test_words_can_learn_from_other_views(processor, tmp_path):
    import rr.finetune
    from rr.reasoner import Reasoner, ReasonerError
    model = build_nano_reasoner(nano_reasoner_config(processor.tokenizer, hidden_size=32, layers=1, heads=2, key_value_heads=1))
    save_nano_reasoner(model, processor, tmp_path/'base')
    other = 'large-overview', 'busy', 'half'
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 25, generator=seeded(0)), (400, 500), mode='bilinear')[0]
    rr.finetune.main([str(w) for w in ['words', PHOTOS, tmp_path/'out', '--start', tmp_path/'base', '--eyes-only', '--steps', 1, '--batch', 2, '--sizes', 224, '--replays', 2, '--views', *other]])
    with pytest.raises(SystemExit): rr.finetune.main(['words', str(PHOTOS), str(tmp_path), '--views', 'back'])
    before, after = (Reasoner.from_pretrained(tmp_path/f, device='cpu') for f in ('base', 'out/weights'))
    assert all(map(torch.equal, before.views(photo), nano_views(photo))) and before.views(photo)[0].shape == (3, 96, 96)
    seen = after.views(photo)
    assert all(map(torch.equal, seen, nano_views(photo, other))) and [v.shape for v in seen] == 3 * [(3, 160, 160)]
    middle = photo[:, 40:360, 90:410].unflatten(1, (160, 2)).unflatten(3, (160, 2)).mean((2, 4))
    assert (seen[2] - middle).abs().max() < .02 < (seen[2] - seen[0]).abs().mean()
    after.severity([photo])
    note = tmp_path/'out/weights/config.json'
    note.write_text(note.read_text().replace('"half"', '"back"'))
    with pytest.raises(ReasonerError, match="asks for the view 'back'; there are busy, quiet, overview"): Reasoner.from_pretrained(tmp_path/'out/weights')

def test_weighted_loss_is_cross_entropy_when_weights_are_one():
    g = seeded(0)
    logits, labels = torch.randn(2, 7, 11, generator=g), torch.randint(11, (2, 7), generator=g)
    labels[0, :3] = -100
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert weighted_loss(logits, labels, torch.ones(2, 7)).item() == pytest.approx(expected.item(), rel=1e-5)

def test_tower_sees_what_the_processor_hands_over():
    tower = NanoTower(16).eval()
    photo = torch.rand(3, 200, 240, generator=seeded(0))
    out = nano_image_processor()(nano_views(photo), return_tensors='pt')
    with torch.no_grad():
        tokens = tower(out['pixel_values'], out['image_grid_thw']).pooler_output
        overview, windows = see(tower, *stack_views([photo]))
    assert torch.allclose(tokens, torch.cat([overview[0], windows[0, 0], windows[0, 1]]), atol=1e-4)
