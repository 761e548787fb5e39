"Rewards that can be checked, and the policy gradient of a text whose form is fixed."
import json

import pytest
import torch

from rr.core import bundled_photos, read_photo, to_pil
from rr.data import PairStream, Recipe
from rr.diagnosis import Diagnosis, Finding, parse_cot
from rr.finetune import add_adapter
from rr.reasoner import SHORT_PROMPT, Reasoner
from rr.reasoner_rl import (ReasonerGRPO, ReasonerGRPOConfig, VerifiableReward, choice_log_probs, choices, main, marks, mean_errors, sample_replies,
                            severity_rows, trl_reward, trl_rows)
from rr.reinforce import Run, RunSettings
from tiny_qwen import tiny_model, tiny_processor

TRUTH = Diagnosis({'fog': Finding(60), 'noise': Finding(30)})


@pytest.mark.parametrize('said, kinds, severity', [
    (TRUTH, 1, 1), (TRUTH.with_severity('fog', 40), 1, .8), (TRUTH.with_severity('fog', 100), 1, .6),
    (TRUTH.with_severity('noise', 0), 2 / 3, .7), (TRUTH.with_severity('rain', 80), .8, 2 / 3), (Diagnosis(), 0, .2), (Diagnosis({'blur': Finding(90)}), 0, .4 / 3)])
def test_marks_count_kinds_and_distances(said, kinds, severity):
    found = marks(said.to_cot(), TRUTH)
    assert found.form == 1 and found.kinds == pytest.approx(kinds) and found.severity == pytest.approx(severity)


def test_a_clean_photo_called_clean_is_right_and_rubbish_is_worth_nothing():
    assert marks(Diagnosis().to_cot(), Diagnosis()) == (1, 1, 1)
    assert marks(TRUTH.to_cot(), Diagnosis()).kinds == 0
    for text in ('', 'a nice photo', '{"fog": {"severity": "very"}}'): assert marks(text, TRUTH) == (0, 0, 0)
    cut = TRUTH.to_cot()[:TRUTH.to_cot().index('\n4.')]
    assert marks(cut, TRUTH) == (.5, 1, 1), 'repaired'


def test_the_reward_is_the_weighted_sum_of_its_marks():
    reward = VerifiableReward(.2, .3, .5, tolerance=20)
    texts = [TRUTH.to_cot(), TRUTH.with_severity('fog', 50).to_cot(), 'nothing']
    assert reward(texts, TRUTH).tolist() == pytest.approx([1, .2 + .3 + .5 * .75, 0])
    assert reward.terms['severity'].tolist() == pytest.approx([1, .75, 0])


def test_trl_gets_the_same_reward_for_texts_and_for_messages():
    verifiable, truths = trl_reward(), [TRUTH.to_json()] * 3
    cot = TRUTH.to_cot()
    said = [cot, [dict(role='assistant', content=cot)], [dict(role='assistant', content=[dict(type='text', text='rubbish')])]]
    assert verifiable(said, truth=truths, prompts=None) == pytest.approx([1, 1, 0]) and verifiable.__name__ == 'verifiable'


# The policy

@pytest.fixture(scope='module')
def nano(): return Reasoner.from_pretrained('nano', device='cpu')

@pytest.fixture(scope='module')
def pair(): return PairStream(list(bundled_photos().values()), 192, Recipe(min_kinds=2), seed=5)[3]


def test_choices_are_those_of_the_graph(nano):
    reply = nano.tokenizer.encode(TRUTH.to_cot())
    allowed = choices(nano.opening, reply)
    text = nano.tokenizer.decode(reply[:len(allowed)])
    assert text.endswith('\n3') and all(t in a for t, a in zip(reply, allowed))
    digits = [a for t, a in zip(reply, allowed) if t in nano.opening.digits and len(a) > 1]
    assert 4 <= len(digits) <= 6, 'three digits for each of two kinds; those of absent kinds are no choice'


def test_log_probs_are_among_the_legal_tokens_only():
    logits = torch.tensor([[[1., 2., 3., 4.], [0., 0., 0., 0.], [1., 1., 5., 1.]]])
    legal = torch.tensor([[[0, 2], [1, -1], [-1, -1]]])
    found = choice_log_probs(logits, torch.tensor([[2, 1, 3]]), legal)
    assert found[0].tolist() == pytest.approx([float(torch.tensor([1., 3.]).log_softmax(0)[1]), 0, 0])
    hot = choice_log_probs(logits, torch.tensor([[2, 1, 3]]), legal, temperature=2.)
    assert hot[0, 0].item() == pytest.approx(float(torch.tensor([.5, 1.5]).log_softmax(0)[1]))


def test_replies_are_legal_drawn_by_chance_and_repeatable(nano, pair):
    first, again = (sample_replies(nano, pair.degraded.clamp(0, 1), 6, seed=3) for _ in range(2))
    assert first.texts == again.texts and len(set(first.texts)) > 1 and first.texts != sample_replies(nano, pair.degraded.clamp(0, 1), 6, seed=4).texts
    for text in first.texts: assert text.startswith('1.') and text.endswith('\n3') and parse_cot(text).diagnosis
    assert first.decisions.any(1).all() and not first.decisions.all()


def test_probabilities_are_those_that_it_was_drawn_with(nano, pair):
    "The mean of e^(log p) over draws of one binary choice is its probability; here: log p of each whole reply against counting."
    replies = sample_replies(nano, pair.degraded.clamp(0, 1), 32, seed=0)
    with torch.no_grad(): log_p = replies.log_probs(nano.model).sum(1)
    named = {}
    for text in replies.texts: named.setdefault(text.split('\n')[0], []).append(text)
    commonest, drawn = max(named.items(), key=lambda item: len(item[1]))
    first = (replies.tokens[:, :12] == replies.tokens[replies.texts.index(drawn[0]), :12]).all(1)
    with torch.no_grad(): early = replies.log_probs(nano.model)[replies.texts.index(drawn[0]), :12].sum().exp().item()
    assert log_p.max() < 0 and abs(first.float().mean().item() - early) < 3 * (early * (1 - early) / 32) ** .5 + 1e-3


def learner(base, folder, updates, reward=None, **config):
    torch.manual_seed(0)
    model = add_adapter(base.model, 4)
    reasoner = Reasoner(model, base.processor, base.prompt, base.make_views, kinds=base.kinds)
    trainer = ReasonerGRPO(reasoner, reward, config=ReasonerGRPOConfig(**(dict(group=6, lr=2e-3) | config)))
    stream = PairStream(list(bundled_photos().values())[:2], 96, Recipe(min_kinds=1, max_kinds=1), seed=2)
    return Run(trainer, stream, None, folder, RunSettings(updates=updates, photos=1, pool=1, save_every=2))

def test_before_the_first_update_all_ratios_are_one_and_afterwards_good_replies_are_likelier(tmp_path):
    run = learner(Reasoner.from_pretrained('nano', device='cpu'), tmp_path, 8)
    history = run.go()
    assert history[0]['ratio_off'] < 1e-3
    assert sum(r['reward'] for r in history[-3:]) > sum(r['reward'] for r in history[:3])
    frozen = [n for n, p in run.trainer.policy.named_parameters() if p.requires_grad]
    assert frozen and all('lora' in n for n in frozen)


def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    told = lambda history: [{k: v for k, v in r.items() if k != 'seconds'} for r in history]
    whole = learner(Reasoner.from_pretrained('nano', device='cpu'), tmp_path / 'whole', 4)
    whole.go()
    learner(Reasoner.from_pretrained('nano', device='cpu'), tmp_path / 'cut', 2).go()
    again = learner(Reasoner.from_pretrained('nano', device='cpu'), tmp_path / 'cut', 4)
    assert len(again.trainer.history) == 2
    again.go()
    assert told(again.trainer.history) == told(whole.trainer.history)


def test_divergence_needs_an_adapter_and_starts_at_zero(nano, pair, tmp_path):
    with pytest.raises(ValueError, match='kl is 0.1'): ReasonerGRPO(nano, config=ReasonerGRPOConfig(kl=.1))
    history = learner(Reasoner.from_pretrained('nano', device='cpu'), tmp_path, 3, kl=.1, lr=5e-3).go()
    assert abs(history[0]['kl']) < 1e-6 and history[-1]['kl'] > 0


def test_rows_hold_what_the_errors_are_made_of(nano, pair):
    rows = severity_rows(nano, [pair])
    assert rows[0]['true'] == {k: pair.diagnosis.severity(k) for k in nano.kinds} and 0 <= rows[0]['reward'] <= 1
    made_up = [dict(true=dict(fog=10, rain=0), expected=dict(fog=16, rain=2), written=dict(fog=10, rain=0))]
    assert mean_errors(made_up) == dict(fog=6, rain=2, all=4) and mean_errors(made_up, 'written')['all'] == 0


def test_command(tmp_path, monkeypatch):
    import rr.reasoner_rl
    thresholds = []
    monkeypatch.setattr(rr.reasoner_rl, 'severity_rows', lambda reasoner, pairs: thresholds.append(reasoner.threshold) or severity_rows(reasoner, pairs))
    photos = tmp_path / 'photos'
    photos.mkdir()
    for name, path in list(bundled_photos().items())[:2]: to_pil(read_photo(path).image[:, :128, :128]).save(photos / f'{name}.png')
    args = [str(photos), str(tmp_path / 'out'), '--updates', '1', '--batch', '1', '--group', '3', '--size', '96', '--pool', '2', '--rank', '2', '--threads', '1',
            '--held-out', str(photos), '--held-out-count', '2']
    main(args)
    assert thresholds == [Reasoner.from_pretrained('nano', device='cpu').threshold] * 2, 'before and after are read alike'
    before, after = ([json.loads(line) for line in (tmp_path / f'out/{name}.jsonl').read_text().splitlines()] for name in ('before', 'after'))
    assert len(before) == len(after) == 2 and [r['true'] for r in before] == [r['true'] for r in after]
    main([*args[:-1], '1'])
    assert [json.loads(line) for line in (tmp_path / 'out/before.jsonl').read_text().splitlines()] == before[:1], 'of other photos, still without the adapter'
    loaded = Reasoner.from_pretrained(str(tmp_path / 'out/adapter'), device='cpu')
    assert loaded.kinds == Reasoner.from_pretrained('nano', device='cpu').kinds and loaded.severity(read_photo(photos / 'cat.png').image if (photos / 'cat.png').exists() else
                                                                                                  read_photo(next(photos.iterdir())).image).shape[1] == len(loaded.kinds)


def test_an_adapter_is_no_base(tmp_path, capsys):
    with pytest.raises(SystemExit): main([str(tmp_path), str(tmp_path / 'out'), '--base', 'nano-seven'])
    assert "merge_adapter('nano-seven', FOLDER)" in capsys.readouterr().err and not (tmp_path / 'out').exists()


# The Qwen size

def test_the_stock_class_with_the_real_vocabulary_learns_by_the_same_lines(pair, tmp_path):
    base = Reasoner(tiny_model(), tiny_processor(), SHORT_PROMPT)
    counted = lambda texts, truth: torch.tensor([float(sum(map(ord, t)) % 11) for t in texts])  # random weights earn nothing that is worth having
    run = learner(base, tmp_path, 1, counted, group=3)
    record = run.go()[0]
    assert record['ratio_off'] < 1e-2 and record['grad_norm'] > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_trains_a_small_random_qwen_with_our_rows_and_rewards(pair, tmp_path):
    trl = pytest.importorskip('trl')
    rows = trl_rows([pair, pair], SHORT_PROMPT)
    assert set(rows.column_names) == {'prompt', 'image', 'truth'} and Diagnosis.from_dict(json.loads(rows[0]['truth'])) == pair.diagnosis
    seen = []
    def length(completions, truth, **kwargs):  # a random model never states a diagnosis: something to learn from must come from elsewhere
        seen.extend(trl_reward()(completions, truth))
        return [float(sum(map(ord, str(c))) % 7) for c in completions]
    length.__name__ = 'length'
    from peft import LoraConfig
    from rr.finetune import LANGUAGE_LAYERS
    model = tiny_model()
    args = trl.GRPOConfig(str(tmp_path), num_generations=2, per_device_train_batch_size=2, max_completion_length=6, max_steps=1, learning_rate=1e-2, report_to=[],
                          use_cpu=True, bf16=False, disable_tqdm=True, save_strategy='no', beta=0.)
    trainer = trl.GRPOTrainer(model, reward_funcs=length, args=args, train_dataset=rows, processing_class=tiny_processor(),
                              peft_config=LoraConfig(r=2, lora_alpha=4, target_modules=LANGUAGE_LAYERS))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert len(seen) == 2 and all(0 <= r <= 1 for r in seen)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)
