"An adapter on a reasoner of either size: trained, saved, loaded, merged, on one process and on two; and its shape at full size."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rr.core import asset, bundled_photos, read_photo, seeded
from rr.data import SEVEN, PairStream, Recipe, clean_photos
from rr.degrade import DEGRADATIONS, KINDS, Degradation, Parameter, degrade, register, to_linear, to_srgb
from rr.diagnosis import Diagnosis, Finding, Scene, parse_cot
from rr.finetune import (ChatCollator, Rehearsal, add_adapter, begin_with, change_words, kept_for_backward, main, merge_adapter, run_trainer, sample_texts, prompt_for,
                         save_adapter, save_memory, teach, training_memory)
from rr.nano import build_nano_reasoner, load_nano_reasoner, nano_processor, nano_reasoner_config, nano_views, save_nano_reasoner, train_tokenizer
from rr.reasoner import FULL_PROMPT, SHORT_PROMPT, Prompt, Reasoner, ReasonerError, adapter_kinds, chat, full_question, is_nano, model_inputs, qwen_config, with_examples
from tiny_qwen import tiny_model, tiny_processor

PHOTOS = Path(__file__).parents[1] / 'rr/assets/photos'
PHOTO = torch.rand(3, 200, 180, generator=seeded(3))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def nano_folder(tmp_path_factory):
    tokenizer = train_tokenizer(sample_texts([Scene()], 400), vocab_size=700)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('base')
    save_nano_reasoner(build_nano_reasoner(nano_reasoner_config(tokenizer, 64, 2, 4)), nano_processor(tokenizer), folder)
    return folder


@pytest.fixture
def vignette():
    "A kind that no weights know."
    class Vignette(Degradation):
        name, parameters, ramp = 'vignette', (Parameter('falloff', '', 0, 1, 2),), dict(falloff=(0, 1))
        def apply(self, image, params, generator, depth=None):
            ys, xs = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in image.shape[-2:]), indexing='ij')
            return to_srgb(to_linear(image) * (1 - params['falloff'] * (xs ** 2 + ys ** 2) / 2))
    register(Vignette(), before='noise')
    yield tuple(k for k in DEGRADATIONS if k in (*KINDS, 'vignette'))
    DEGRADATIONS.pop('vignette')


def streams(size=96, **recipe): return [PairStream(clean_photos(PHOTOS), size, Recipe(**recipe))]


def test_adapter_of_nano_learns_a_new_kind_and_comes_back_the_same(nano_folder, tmp_path, vignette):
    base = Reasoner.from_pretrained(nano_folder)
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    tuned = teach(base, streams(kinds=('vignette', 'noise')), tmp_path / 'a', nano_folder, vignette, steps=3, batch=2, rank=4, learning_rate=1e-2)
    trained = [n for n, p in tuned.model.named_parameters() if p.requires_grad]
    assert trained and all('lora_' in n and 'visual' not in n for n in trained)
    plain = tuned.model.get_base_model().state_dict()
    assert all(torch.equal(before[n], plain[n.replace('_proj.weight', '_proj.base_layer.weight') if n not in plain else n]) for n in before)
    with torch.no_grad():  # far from zero, so that the comparison means something
        for n, p in tuned.model.named_parameters():
            if 'lora_B' in n: torch.nn.init.normal_(p, std=.5, generator=seeded(1))
    save_adapter(tuned.model, tmp_path / 'a', nano_folder, vignette)
    want = tuned.severity(PHOTO)
    loaded = Reasoner.from_pretrained(tmp_path / 'a')
    assert loaded.kinds == vignette and want.shape == (1, len(KINDS) + 1)
    assert torch.allclose(loaded.severity(PHOTO), want, atol=1e-2)
    merge_adapter(tmp_path / 'a', tmp_path / 'merged')
    merged = Reasoner.from_pretrained(tmp_path / 'merged')
    assert merged.kinds == vignette and not (tmp_path / 'merged/adapter_config.json').exists()
    assert torch.allclose(merged.severity(PHOTO), want, atol=1.5)  # half precision
    assert (want[:, :-1] - Reasoner.from_pretrained(nano_folder).severity(PHOTO)).abs().max() > .5
    text = merged.reply(PHOTO)[0].text
    assert 'vignette ' in text.split('\n')[1]


def test_adapter_of_an_unregistered_kind_is_refused_in_one_line(nano_folder, tmp_path):
    (tmp_path / 'adapter_config.json').write_text(json.dumps(dict(base_model_name_or_path=str(nano_folder))))
    (tmp_path / 'kinds.json').write_text('["fog", "hail"]')
    with pytest.raises(ReasonerError, match='hail: register that kind first'): Reasoner.from_pretrained(tmp_path)


def test_teaching_resumes_where_it_was(nano_folder, tmp_path):
    run = lambda steps, **options: teach(Reasoner.from_pretrained(nano_folder), streams(), tmp_path, nano_folder, steps=steps, batch=1, rank=2, **options)
    run(2, save_steps=2)
    run(4, save_steps=2)
    steps = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [p.name for p in tmp_path.glob('checkpoint-*')] == ['checkpoint-4'] and steps[-1]['step'] == 4


def test_an_adapter_begins_where_a_smaller_one_ended(nano_folder, tmp_path, vignette):
    run = lambda name, rate, **options: teach(
        Reasoner.from_pretrained(nano_folder), streams(kinds=vignette), tmp_path / name, nano_folder, vignette, steps=2, batch=2, rank=2, learning_rate=rate, **options)
    first = run('a', 3e-2)
    second = run('b', 0., start=tmp_path / 'a', vision=True)
    lora = [n for n, p in second.model.named_parameters() if p.requires_grad]
    assert any('visual.body' in n and 'conv1' in n for n in lora) and not any('visual' in n for n, p in first.model.named_parameters() if p.requires_grad)
    assert torch.allclose(first.severity(PHOTO), second.severity(PHOTO), atol=.1)  # the file is in half precision
    assert (second.severity(PHOTO) - run('c', 0., vision=True).severity(PHOTO)).abs().max() > .2
    with pytest.raises(ValueError, match='another rank'): begin_with(add_adapter(Reasoner.from_pretrained(nano_folder).model, 3), tmp_path / 'a')


def test_an_adapter_begins_only_where_nothing_of_it_is_lost(nano_folder, tmp_path):
    fresh = lambda **options: add_adapter(load_nano_reasoner(nano_folder)[0], 2, **options)
    save_adapter(fresh(alpha=3, vision=True), tmp_path / 'eyes', nano_folder)
    begin_with(fresh(alpha=3, vision=True), tmp_path / 'eyes')
    with pytest.raises(ValueError, match='weights for layers without an adapter here.*visual.*vision=True'): begin_with(fresh(alpha=3), tmp_path / 'eyes')
    with pytest.raises(ValueError, match='has alpha 3, got 4'): begin_with(fresh(vision=True), tmp_path / 'eyes')


def test_kinds_come_in_any_order(nano_folder, tmp_path):
    given, ordered = ('noise', 'snow', 'fog'), ('fog', 'snow', 'noise')
    base = Reasoner.from_pretrained(nano_folder)
    one, other = (Reasoner(base.model, base.processor, base.prompt, base.make_views, kinds=kinds) for kinds in (given, ordered))
    assert one.kinds == ordered and torch.equal(one.severity(PHOTO), other.severity(PHOTO))
    assert teach(base, streams(kinds=given), tmp_path, nano_folder, given, steps=1, batch=1, rank=2).kinds == ordered
    (tmp_path / 'kinds.json').write_text(json.dumps(given))
    assert adapter_kinds(tmp_path) == ordered
    with pytest.raises(ValueError, match='unknown kinds hail'): Reasoner(base.model, base.processor, kinds=('fog', 'hail'))
    with pytest.raises(ValueError, match='unknown kinds hail'): teach(Reasoner.from_pretrained(nano_folder), streams(), tmp_path, nano_folder, ('hail',))


def test_an_adapter_is_taught_on_plain_weights_only(nano_folder, tmp_path, capsys):
    run = lambda reasoner, base: teach(reasoner, streams(), tmp_path / 'a', base, steps=1, batch=1, rank=2)
    base = Reasoner.from_pretrained(nano_folder)
    tuned = run(base, nano_folder)
    for again in (tuned, base): pytest.raises(ValueError, run, again, nano_folder).match('has an adapter already')
    pytest.raises(ValueError, run, Reasoner.from_pretrained(tmp_path / 'a'), tmp_path / 'a').match(r"is an adapter.*merge_adapter\('.*a', FOLDER\)")
    pytest.raises(ValueError, run, Reasoner.from_pretrained(tmp_path / 'a'), 'nano').match('other weights than nano')
    with pytest.raises(SystemExit): main(['lora', str(PHOTOS), str(tmp_path), '--base', 'nano-seven'])
    assert "merge_adapter('nano-seven', FOLDER) makes them; or --base nano --start nano-seven" in capsys.readouterr().err
    assert len(list((tmp_path / 'a').glob('checkpoint-*'))) == 1, 'refused before anything was trained'
    merge_adapter(tmp_path / 'a', tmp_path / 'sum')
    teach(Reasoner.from_pretrained(tmp_path / 'sum'), streams(), tmp_path / 'b', tmp_path / 'sum', steps=1, batch=1, rank=2)
    assert Reasoner.from_pretrained(tmp_path / 'b').kinds == KINDS


@pytest.mark.parametrize('vision', [False, True])
def test_adapter_of_qwen_through_the_same_lines(tmp_path, vision):
    reasoner = Reasoner(tiny_model(spread=.05), tiny_processor(), SHORT_PROMPT)
    tuned = teach(reasoner, streams(64), tmp_path, 'tiny', steps=2, batch=2, rank=2, vision=vision, gradient_checkpointing=True)
    trained = [n for n, p in tuned.model.named_parameters() if p.requires_grad]
    assert any('visual' in n for n in trained) == vision and any('language_model' in n for n in trained)
    assert all(p.grad is None or p.grad.isfinite().all() for p in tuned.model.parameters())
    moved = [p.abs().max() for n, p in tuned.model.named_parameters() if 'lora_B' in n]
    assert sum(m > 0 for m in moved) == len(moved)
    assert tuned.severity(PHOTO).shape == (1, len(KINDS))


@pytest.mark.parametrize('size,rank', [('2B', 16), ('4B', 16), ('8B', 32)])
def test_adapter_fits_the_full_size_shapes(size, rank):
    from transformers import Qwen3VLForConditionalGeneration
    config = qwen_config(size)
    t = config.text_config
    with torch.device('meta'): model = add_adapter(Qwen3VLForConditionalGeneration(config), rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    q, kv = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    one_layer = sum(a + b for a, b in [(t.hidden_size, q), (t.hidden_size, kv), (t.hidden_size, kv), (q, t.hidden_size),
                                       *[(t.hidden_size, t.intermediate_size)] * 2, (t.intermediate_size, t.hidden_size)])
    assert trained == rank * t.num_hidden_layers * one_layer
    with torch.device('meta'): seeing = add_adapter(Qwen3VLForConditionalGeneration(config), rank, vision=True)
    assert sum(p.numel() for p in seeing.parameters() if p.requires_grad) > trained


@pytest.mark.parametrize('processes', [1, 2])
def test_as_a_command_on_one_process_and_on_two(nano_folder, tmp_path, processes):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', '-m', 'rr.finetune', 'lora', PHOTOS, tmp_path,
               '--base', nano_folder, '--steps', 2, '--batch', 2, '--rank', 2, '--threads', 1]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, cwd=PHOTOS.parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert Reasoner.from_pretrained(tmp_path).kinds == KINDS
    line, = (tmp_path / 'log.jsonl').read_text().splitlines()  # from one of the processes
    assert json.loads(line)['step'] == 2


def test_other_kinds_as_a_command(nano_folder, tmp_path):
    words = ['lora', PHOTOS, tmp_path, '--base', nano_folder, '--steps', 1, '--batch', 1, '--rank', 2]
    main([str(w) for w in [*words, '--kinds', 'noise', 'snow', 'fog', '--weights', 1, 2, 1]])
    taught = Reasoner.from_pretrained(tmp_path)
    assert taught.kinds == ('fog', 'snow', 'noise') and is_nano(str(tmp_path))
    assert taught.threshold == Reasoner.from_pretrained(nano_folder).threshold
    assert list(taught.reply(PHOTO)[0].diagnosis.severities(taught.kinds)) == ['fog', 'snow', 'noise']


def test_an_adapter_is_refused_on_other_weights(nano_folder, tmp_path):
    shutil.copytree(nano_folder, tmp_path / 'base')
    teach(Reasoner.from_pretrained(tmp_path / 'base'), streams(), tmp_path / 'a', str(tmp_path / 'base'), steps=1, batch=1, rank=2)
    assert Reasoner.from_pretrained(tmp_path / 'a').kinds == KINDS
    model, processor = load_nano_reasoner(tmp_path / 'base')
    with torch.no_grad(): model.model.visual.project.bias += .1
    save_nano_reasoner(model, processor, tmp_path / 'base')
    with pytest.raises(ReasonerError, match='other weights'): Reasoner.from_pretrained(tmp_path / 'a')
    with pytest.raises(ValueError, match='other weights'): merge_adapter(tmp_path / 'a', tmp_path / 'sum')
    with pytest.raises(ValueError, match='other weights'): begin_with(add_adapter(model, 2), tmp_path / 'a')


def test_a_checkpoint_that_was_cut_short_is_passed_over(nano_folder, tmp_path):
    "As a kill or a full disk leaves it: some files are there, the state of the trainer is not, or not whole."
    run = lambda steps: teach(Reasoner.from_pretrained(nano_folder), streams(), tmp_path, nano_folder, steps=steps, batch=1, rank=2, save_steps=2, save_total_limit=3)
    run(2)
    for name, state in (('checkpoint-3', None), ('checkpoint-4', '{"global_st')):
        shutil.copytree(tmp_path / 'checkpoint-2', tmp_path / name)
        weights = tmp_path / name / 'adapter_model.safetensors'
        weights.write_bytes(weights.read_bytes()[:1000])
        (tmp_path / name / 'trainer_state.json').unlink()
        if state: (tmp_path / name / 'trainer_state.json').write_text(state)
    run(4)
    assert sorted(p.name for p in tmp_path.glob('checkpoint-*')) == ['checkpoint-2', 'checkpoint-4']
    assert [json.loads(line)['step'] for line in (tmp_path / 'log.jsonl').read_text().splitlines()] == [2, 4]


def test_accumulated_updates_go_on_with_the_pairs_that_come_next(nano_folder, tmp_path):
    model, processor = load_nano_reasoner(nano_folder)
    run = lambda data, steps: run_trainer(model, data, ChatCollator(processor, None), tmp_path, max_steps=steps, save_steps=1, warmup_steps=0,
                                          per_device_train_batch_size=2, gradient_accumulation_steps=3)
    first, second = Rehearsal([Scene()]), Rehearsal([Scene()])
    run(first, 1); run(second, 2)
    assert (first.start, second.start) == (0, 6)


def test_words_keep_their_meaning_when_the_vocabulary_changes_its_order():
    old, new = (train_tokenizer(sample_texts([scene], 200), vocab_size=450) for scene in (Scene(), Scene('indoor', 'flash', 'a red cup', ('cup',), 'rim')))
    model = build_nano_reasoner(nano_reasoner_config(old, 64, 1, 4))
    assert len(new) == len(old) and new.get_vocab() != old.get_vocab()
    other = change_words(model, old, new)
    was, now = model.get_input_embeddings().weight, other.get_input_embeddings().weight
    for piece in new.get_vocab().keys() & old.get_vocab().keys():
        assert torch.equal(now[new.get_vocab()[piece]], was[old.get_vocab()[piece]]), piece
    assert other.lm_head.weight is now and torch.equal(other.model.visual.project.weight, model.model.visual.project.weight)


def test_the_shipped_adapter_sees_what_the_weights_below_it_do_not(tmp_path):
    seven, four = Reasoner.from_pretrained('nano-seven'), Reasoner.from_pretrained('nano')
    assert seven.kinds == SEVEN == tuple(DEGRADATIONS) and is_nano('nano-seven') and four.kinds == KINDS
    clean = read_photo(bundled_photos()['cat']).image[:, :360, :480]
    quiet = seven.severity(clean)[0]
    for kind in set(SEVEN) - set(KINDS):
        damaged = degrade(clean, {kind: 70}, seed=2).image
        said = seven.severity(damaged)[0][SEVEN.index(kind)]
        assert said > 40 and said > quiet[SEVEN.index(kind)] + 30, kind
        reply, = seven.reply(damaged)
        assert kind in reply.diagnosis.present and reply.diagnosis == parse_cot(reply.text).diagnosis and not reply.repairs
    merge_adapter('nano-seven', tmp_path / 'merged')
    assert torch.allclose(Reasoner.from_pretrained(tmp_path / 'merged').severity(clean)[0], quiet, atol=.5)  # half precision


@pytest.mark.parametrize('words,says', [
    (['words', '--kinds', 'snow'], 'words knows fog, rain, blur, noise; --kinds is for lora'),
    (['lora', '--kinds', 'snow', '--weights', '1', '2'], 'got 2 weights; expected one for each of snow'),
    (['lora', '--kinds', 'hail'], "invalid choice: 'hail'"),
])
def test_impossible_kinds_are_one_line(words, says, tmp_path, capsys):
    with pytest.raises(SystemExit): main([words[0], str(PHOTOS), str(tmp_path), *words[1:]])
    assert says in capsys.readouterr().err


def test_what_is_taught_is_what_is_asked_for(vignette, tmp_path):
    assert prompt_for(SHORT_PROMPT, KINDS, vignette) == SHORT_PROMPT
    asked = prompt_for(FULL_PROMPT, KINDS, vignette)
    assert asked.question == full_question(vignette) and 'vignette' in asked.question and asked.system == FULL_PROMPT.system
    reasoner = Reasoner(tiny_model(spread=.05), tiny_processor(), threshold=.6)
    tuned = teach(reasoner, streams(64), tmp_path, 'tiny', vignette, steps=1, batch=1, rank=2)
    assert tuned.prompt == asked and tuned.threshold == .6


def test_only_the_answer_to_the_last_question_is_learnt(nano_folder):
    reasoner = Reasoner.from_pretrained(nano_folder)
    stream = streams()[0]
    prompt = with_examples(SHORT_PROMPT, [stream[i] for i in range(4)], 2, nano_views)
    batch = ChatCollator(reasoner.processor, prompt=prompt)([stream[9]])
    learnt = reasoner.tokenizer.decode(batch['labels'][0][batch['labels'][0] != -100])
    assert learnt == stream[9].diagnosis.to_cot() + '<|im_end|>\n'


def test_examples_cover_kinds_first():
    class Case:
        def __init__(self, **severities):
            self.degraded, self.diagnosis = PHOTO, Diagnosis({k: Finding(s) for k, s in severities.items()})
    cases = [Case(fog=50), Case(fog=52), Case(noise=10, blur=20), Case(fog=95)]
    prompt = with_examples(Prompt('', 'What?'), cases, 3, lambda photo: [photo])
    assert [a for _, a in prompt.examples] == [cases[i].diagnosis.to_cot() for i in (2, 3, 0)]
    roles = [m['role'] for m in chat([PHOTO], prompt=prompt)]
    assert roles == ['user', 'assistant'] * 3 + ['user']


def test_examples_reach_qwen():
    processor = tiny_processor()
    prompt = Prompt(FULL_PROMPT.system, FULL_PROMPT.question, ((([PHOTO[:, :96, :96]]), Diagnosis().to_cot()),))
    inputs = model_inputs(processor, [[PHOTO[:, :64, :64]]], prompt)
    assert len(inputs['image_grid_thw']) == 2
    assert (inputs['input_ids'] == processor.image_token_id).sum() == inputs['image_grid_thw'].prod(1).sum() // 4


@pytest.mark.parametrize('tokens', [40, 130])
def test_memory_plan_counts_what_a_real_run_keeps(tokens):
    from transformers import Qwen3VLForConditionalGeneration
    real = add_adapter(tiny_model(), 4).train()
    with torch.device('meta'): planned = add_adapter(Qwen3VLForConditionalGeneration(real.get_base_model().config), 4).train()
    assert 0 < kept_for_backward(real, 2, tokens) <= kept_for_backward(planned, 2, tokens)  # attention may be fused
    for model in (real, planned): save_memory(model)
    assert kept_for_backward(real, 2, tokens) == kept_for_backward(planned, 2, tokens) > 0


def test_memory_plan_of_the_real_shapes():
    plain, saving, packed = (training_memory(qwen_config('4B'), **o) for o in (dict(checkpointing=False), {}, dict(quantize='4bit')))
    assert saving['together'] < plain['together'] / 2 and packed['weights'] < .55 * saving['weights']
    assert saving['weights'] == pytest.approx(8.88, abs=.02)
    assert training_memory(qwen_config('4B'), batch=2)['kept'] == pytest.approx(2 * saving['kept'], rel=.02)
    assert saving['scores'] == pytest.approx(350 * 151936 * 10 / 1e9, abs=.01) == training_memory(qwen_config('4B'), tokens=4000)['scores']


def test_values_of_a_taught_reasoner_keep_their_names(nano_folder, vignette):
    "A kind in the middle moves the columns behind it: pipeline, reward and evaluation must not take one for the other."
    from rr.data import Pair
    from rr.evaluate import compare_twins, reasoner_record
    from rr.reasoner import for_kinds
    from rr.rl import SeverityReward, no_guard
    base = Reasoner.from_pretrained(nano_folder)
    taught = Reasoner(base.model, base.processor, base.prompt, base.make_views, kinds=vignette)
    reply, = taught.reply(PHOTO, 40)
    assert reply.kinds == vignette and len(reply.severity) == len(KINDS) + 1
    columns = {k: float(v) for k, v in zip(vignette, reply.severity)}
    assert for_kinds(reply.severity, reply.kinds).tolist() == [columns[k] for k in KINDS]
    record = reasoner_record(Pair(PHOTO, PHOTO, Diagnosis(), '', 0), taught)
    severity = dict(zip(vignette, taught.severity(PHOTO)[0].tolist()))
    assert record['expected']['noise'] == pytest.approx(columns['noise'], abs=1) and set(record['expected']) == set(KINDS)
    twin, = compare_twins(taught, [Pair(PHOTO, PHOTO, None, 'a', 0)], 'noise', progress=False)
    assert twin['damaged'] == pytest.approx(severity['noise'], abs=.01)
    reward = SeverityReward(taught, {'vignette': 1.}, no_guard)
    assert reward(PHOTO[None], PHOTO[None]).shape == (1,) and reward.weights.tolist() == [float(k == 'vignette') for k in vignette]
