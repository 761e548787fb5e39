"The reasoner: the Qwen size on the stock classes built small and random, the nano size also as it ships."
import math
import re
import warnings
from contextlib import nullcontext
from copy import copy

import pytest
import torch
from torch import Tensor

import rr.reasoner
from rr.core import bundled_photos, read_photo
from rr.degrade import DEGRADATIONS, KINDS, degrade, severity_of, strength
from rr.diagnosis import Diagnosis, parse_cot
from rr.finetune import teach
from rr.nano import nano_views
from rr.reasoner import (EXAMPLE, FULL_PROMPT, SHORT_PROMPT, WHOLE, Branches, Guide, MedianDigits, Opening, Reasoner, ReasonerError, chat,
                         corner_looks, digit_tokens, expected, hang_severity, measure, median, memory_needed, model_inputs, most_probable,
                         padded, part_of, prefix_tree, quantile_digit, qwen_config, severities_given, severity_and_on, severity_with_gradient, sign_twins,
                         shared_end, subset_probabilities, tree_distribution, within_budget)
from tiny_qwen import qwen_tokenizer, tiny_model, tiny_processor


def noise(*size, seed=0): return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def tiny(): return Reasoner(tiny_model(), tiny_processor(), SHORT_PROMPT)


@pytest.fixture
def exact(monkeypatch):
    "float32 throughout."
    monkeypatch.setattr(rr.reasoner, 'autocast', lambda device: nullcontext())


# Prompt

def test_full_prompt_names_every_kind_parameter_and_choice():
    from rr.degrade import DEGRADATIONS
    for kind in KINDS:
        line = re.search(rf'^   {kind}: (.*)$', FULL_PROMPT.question, re.M)[1]
        for p in DEGRADATIONS[kind].parameters: assert all(word in line for word in (p.name, *p.choices))

def test_prompt_example_is_a_lossless_diagnosis():
    shown = FULL_PROMPT.question[FULL_PROMPT.question.rindex('1. Identify'):]
    parsed = parse_cot(shown)
    assert not parsed.repairs and parsed.diagnosis == EXAMPLE

def test_chat_with_answer_continues_chat_without():
    processor, views = tiny_processor(), [noise(64, 64)] * 3
    ask = processor.apply_chat_template(chat(views), tokenize=False, add_generation_prompt=True)
    full = processor.apply_chat_template(chat(views, EXAMPLE.to_cot()), tokenize=False)
    assert full.startswith(ask) and full[len(ask):] == EXAMPLE.to_cot() + '<|im_end|>\n'
    assert ask.count('<|image_pad|>') == 3


# The graph of legal openings

def paths(node, limit):
    "Random complete walks through the graph."
    g = torch.Generator().manual_seed(0)
    for _ in range(limit):
        walk, here = [], node
        while here:
            options = list(here)
            walk.append(options[torch.randint(len(options), (), generator=g)])
            here = here[walk[-1]]
        yield walk

def test_severity_graph_allows_exactly_the_legal_numbers():
    def words(node): return [''] if not node else [str(d) + w for d in node for w in words(node[d])]
    for present, legal in ((True, range(1, 101)), (False, [0])):
        root = {}
        hang_severity(root, list(range(10)), present)
        assert sorted(words(root)) == [f'{v:03d}' for v in legal]

def test_every_opening_parses_to_what_it_says_and_is_canonical():
    tokenizer = qwen_tokenizer()
    seen = set()
    for walk in paths(Opening(tokenizer).root, 2000):
        text = tokenizer.decode(walk)
        assert tokenizer.encode(text) == walk
        diagnosis = parse_cot(text).diagnosis
        assert text == '\n'.join(diagnosis.to_cot().split('\n')[:2]) + '\n3'
        seen.add(diagnosis.present)
    assert len(seen) == 16

def test_every_true_chain_of_thought_passes_the_guide(tiny):
    for severities in ({}, {'fog': 100}, {'rain': 7, 'blur': 10}, dict.fromkeys(KINDS, 1)):
        diagnosis = Diagnosis()
        for kind, s in severities.items(): diagnosis = diagnosis.with_severity(kind, s)
        node = tiny.opening.root
        for token in tiny.tokenizer.encode(diagnosis.to_cot()):
            if not node: break
            node = node[token]
        assert node == {}

def test_graph_of_one_subset_allows_its_openings_only():
    tokenizer = qwen_tokenizer()
    opening = Opening(tokenizer)
    for present in opening.subsets:
        for walk in paths(opening.only(present), 20):
            assert parse_cot(tokenizer.decode(walk)).diagnosis.present == present
            node = opening.root
            for token in walk: node = node[token]
            assert node == {}

def guided(tokenizer, opening, text, limit=400):
    "What the guide makes of random logits after `text` was written, as text up to the end token."
    guide, ids, g = Guide(opening, tokenizer), torch.zeros(1, 1, dtype=torch.long), torch.Generator().manual_seed(0)
    for token in [*tokenizer.encode(text), None]:
        scores = guide(ids, torch.randn(1, len(tokenizer), generator=g))
        if token is not None: ids = torch.cat([ids, torch.tensor([[token]])], 1)
    written = len(ids[0])
    while (token := scores.argmax(-1).item()) != tokenizer.eos_token_id and len(ids[0]) < written + limit:
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        scores = guide(ids, torch.randn(1, len(tokenizer), generator=g))
    return tokenizer.decode(ids[0, written:]), guide

def test_json_is_held_to_the_stages(tiny):
    *stages, closing = EXAMPLE.to_cot().split('\n')
    text, guide = guided(tiny.tokenizer, tiny.opening, '\n'.join(stages) + '\n')
    assert text == closing and guide.repairs == [()]
    wild = '\n'.join(stages).replace('sigma 23.0', 'sigma 230.0') + '\n'
    text, guide = guided(tiny.tokenizer, tiny.opening, wild)
    assert parse_cot(text).diagnosis.findings['noise'].parameters['sigma'] == 100. and 'noise.sigma' in guide.repairs[0][0]
    unfinished, _ = guided(tiny.tokenizer, tiny.opening, '\n'.join(stages[:4]) + '\n', limit=20)
    assert not unfinished.startswith('{"fog"')

def test_digits_lead_to_the_median_of_whole_numbers():
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        p = torch.rand(1000, generator=g) ** 4  # of 000 to 999
        tree, rank, number = p.view(10, 10, 10), .5, ()
        for _ in range(3):
            below = tree[number]
            digit, rank = quantile_digit(below.reshape(10, -1).sum(1), rank)
            number += (digit,)
        found = int(''.join(map(str, number)))
        assert p[:found].sum() <= p.sum() / 2 + 1e-4 and p[:found + 1].sum() >= p.sum() / 2 - 1e-4

class Beliefs:
    "Logits of a model that has made up its mind, up to its numbers: each is written with the probabilities given for it."
    def __init__(self, tokenizer, text, beliefs): self.tokenizer, self.ids, self.beliefs = tokenizer, tokenizer.encode(text), beliefs
    def scores(self, written):
        logits = torch.full((1, len(self.tokenizer)), -30.)
        prefix = self.tokenizer.decode(written)
        for token, p in self.beliefs.get(prefix, {}).items(): logits[0, token] = math.log(p)
        if prefix not in self.beliefs: logits[0, self.ids[len(written)]] = 0.
        return logits

@pytest.mark.parametrize('median, wanted', [(True, '3. Parameters: fog airlight 0.82'), (False, '3. Parameters: fog airlight 0.75')])
def test_parameters_are_written_at_their_median(tiny, median, wanted):
    "0.7x: 40%, 0.8x: 35%, 0.9x: 25%; the second digits of 0.8x are even, of 0.7x they peak at 5. Half is passed 2/7 into 0.8x."
    tokenizer, stem = tiny.tokenizer, '3. Parameters: fog airlight 0.'
    digit = tiny.opening.digits
    beliefs = {stem: {digit[7]: .40, digit[8]: .35, digit[9]: .25}, stem + '8': dict.fromkeys(digit, .1), stem + '7': {d: .05 for d in digit} | {digit[5]: .55}}
    model, guide = Beliefs(tokenizer, stem + '00', beliefs), Guide(tiny.opening, tokenizer, median)
    guide.nodes, guide.start, guide.repairs = [{}], 0, [()]  # behind the opening
    guide.numbers, written = MedianDigits(tokenizer, digit, 1), []
    while len(written) < len(model.ids):
        ids = torch.tensor([written], dtype=torch.long)
        scores = guide(ids, model.scores(written)) if written else model.scores(written)
        written.append(int(scores.argmax()))
    assert tokenizer.decode(written) == wanted

def test_the_sign_counts_in_the_median(tiny):
    tokenizer = tiny.tokenizer
    plus = next(iter(sign_twins(tokenizer)))
    numbers = MedianDigits(tokenizer, tiny.opening.digits, 1)
    assert numbers.start(0, plus) == .5  # nothing is known of the step before
    numbers.before = torch.full((1, len(tokenizer)), -30.)
    numbers.before[0, [plus, numbers.twins[plus]]] = torch.tensor([.6, .4]).log()
    assert numbers.start(0, plus) == pytest.approx(1 - .5 / .6, abs=1e-4)
    numbers.before[0, numbers.twins[plus]] = -30.
    assert numbers.start(0, plus) == pytest.approx(.5, abs=1e-4)

def test_vocabulary_without_digit_tokens_is_refused():
    class Words:
        def encode(self, text, **_): return [1, 2]
    with pytest.raises(ReasonerError, match='digit'): digit_tokens(Words())


# Severity as an expected value

def test_tree_on_independent_digits_is_their_product():
    p = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    log_p = torch.empty(14, 10)
    for node, digit in zip(range(14), [0, 1, 1] + [2] * 11): log_p[node] = p[digit].log()
    want = torch.stack([p[0, s // 100] * p[1, s // 10 % 10] * p[2, s % 10] for s in range(101)])
    assert torch.allclose(tree_distribution(log_p), want / want.sum(), atol=1e-6)

def test_legal_severities_of_the_tree():
    log_p = torch.randn(2, 14, 10, generator=torch.Generator().manual_seed(0))
    free, held = tree_distribution(log_p), tree_distribution(log_p, torch.tensor([True, False]))
    assert torch.allclose(held[0, 1:], free[0, 1:] / free[0, 1:].sum(), atol=1e-6) and held[0, 0] == 0
    assert held[1, 0] == 1 and held[1, 1:].max() == 0

def test_median_is_the_first_severity_that_passes_half():
    p = torch.zeros(3, 101)
    p[0, 0], p[1, 100] = 1, 1
    p[2, 30], p[2, 31], p[2, 90] = .4, .2, .4
    assert median(p).tolist() == [0, 100, 31]

def plainly(reasoner, photo, texts:Tensor, keep:int) -> Tensor:  # (N,L) tokens after the prompt -> logits (N,keep,V)
    "The logits of the last places of each text: no cache, no branches, no padding."
    inputs, logits = model_inputs(reasoner.processor, [reasoner.views(photo)], reasoner.prompt), []
    for group in texts.split(26):
        n = len(group)
        ids = torch.cat([inputs['input_ids'].expand(n, -1), group], 1)
        types = torch.cat([inputs['mm_token_type_ids'].expand(n, -1), torch.zeros_like(group)], 1)
        with torch.no_grad():
            pictures = {k: inputs[k].repeat(n, 1) for k in ('pixel_values', 'image_grid_thw')}
            logits.append(reasoner.model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types,
                                         logits_to_keep=keep, **pictures).logits)
    return torch.cat(logits)

def log_probability(reasoner, photo, text:list) -> float:
    "Of a text after the prompt."
    tokens = torch.tensor([text])
    logits = plainly(reasoner, photo, tokens, len(text) + 1)[:, :-1]
    return float(logits.log_softmax(-1).gather(2, tokens[..., None]).sum())

def brute_force(reasoner, photo, before:list) -> Tensor:  # (100,) of 001 to 100
    "Every severity of a kind that is named, scored by itself."
    strings = torch.tensor([[reasoner.opening.digits[int(c)] for c in f'{s:03d}'] for s in range(1, 101)])
    logits = plainly(reasoner, photo, torch.cat([torch.tensor(before).expand(100, -1), strings], 1), 4)[:, :3]
    return logits.log_softmax(-1).gather(2, strings[..., None]).sum((1, 2)).softmax(0)

def branches_of(reasoner, photos, most=16, share=2.):  # more than there is: all of them
    "P(S), the branches that are kept, their weights, and D in each."
    inputs = model_inputs(reasoner.processor, [reasoner.views(p) for p in photos], reasoner.prompt)
    with torch.no_grad():
        branches = Branches(reasoner.model, inputs)
        p = subset_probabilities(branches, reasoner.opening)
        index, weight = most_probable(p, most, share)
        branches.keep(index)
        return p, index, weight, severities_given(branches, reasoner.opening, index)

PHOTOS = [noise(90, 130), noise(200, 100, seed=1) * .5]  # of different sizes: the batch is padded

def same_as_brute_force(reasoner, photos, ranks, kinds):
    "Are P(S) of all subsets, and D of the branches with these ranks, those of one text at a time?"
    opening = reasoner.opening
    p, index, weight, given = branches_of(reasoner, photos)
    assert p.shape == (len(photos), 16) and given.shape == (len(photos), 16, len(KINDS), 101)
    for row, photo in enumerate(photos):
        ends = [sites[0] - len(opening.tail) for _, sites in opening.texts]  # what follows in every text is no choice
        heads = [log_probability(reasoner, photo, tokens[:end]) for (tokens, _), end in zip(opening.texts, ends)]
        assert (p[row] - torch.tensor(heads).softmax(0)).abs().max() < 1e-4
        for i in ranks:
            subset = int(index[row, i])
            before = list(opening.texts[subset][0][:opening.texts[subset][1][0]])
            for k, kind in enumerate(KINDS):
                if kind not in opening.subsets[subset]: assert given[row, i, k, 0] == 1
                elif kind in kinds:
                    want = brute_force(reasoner, photo, before)
                    assert (given[row, i, k, 1:] - want).abs().max() < 1e-4 and given[row, i, k, 0] == 0
                    assert want.max() > .02  # not flat: the comparison means something
                if k < 3: before += severity_and_on(opening, k, subset, int(median(given[row, i, k])))

def test_branches_equal_brute_force(tiny, exact): same_as_brute_force(tiny, PHOTOS, (0, 1, 5), KINDS)

def test_openings_are_cut_into_what_differs_and_the_end_that_all_share(tiny):
    opening = tiny.opening
    assert opening.tail and len(opening.beginnings) == 16 and len(set(map(tuple, opening.beginnings))) == 16
    for beginning, (tokens, sites) in zip(opening.beginnings, opening.texts): assert beginning + opening.tail == tokens[:sites[0]]
    assert len({b[-1] for b in opening.beginnings}) == 1, 'the end of stage 1 is part of the choice'
    assert shared_end([[1, 2, 5, 6], [1, 3, 4, 5, 6]]) == ([[1, 2, 5], [1, 3, 4, 5]], [6]) and shared_end([[7, 8], [9, 9]]) == ([[7, 8], [9, 9]], [])
    assert shared_end([[7, 8], [8]]) == ([[7, 8], [8]], []), 'no text becomes empty'

def test_texts_become_a_tree_in_which_what_they_share_stands_once(tiny):
    tokens, parents, ends = prefix_tree([[5, 6], [5, 7, 8], [5], [9]])
    assert tokens.tolist() == [5, 6, 7, 8, 9] and parents.tolist() == [-1, 0, 0, 2, -1] and ends.tolist() == [1, 3, 0, 4]
    tokens, parents, ends = prefix_tree(tiny.opening.beginnings)
    for text, node in zip(tiny.opening.beginnings, ends.tolist()):
        path = []
        while node >= 0: path.append(int(tokens[node])); node = int(parents[node])
        assert path[::-1] == text
    assert 2 * len(tokens) < sum(map(len, tiny.opening.beginnings))

def test_a_fork_is_as_the_texts_written_side_by_side(tiny, exact):
    "What stands in the tree once, and what several branches then see, is as if each branch had its own."
    inputs, texts = model_inputs(tiny.processor, [tiny.views(p) for p in PHOTOS], tiny.prompt), tiny.opening.beginnings
    with torch.no_grad():
        tree, rows = Branches(tiny.model, inputs), Branches(tiny.model, inputs)
        forked = tree.fork(texts)
        rows.keep(torch.zeros(2, len(texts), dtype=torch.long))
        assert torch.allclose(forked, rows.append(*padded([texts] * 2, 'cpu')), atol=1e-4)
        assert tree.cache.get_seq_length() < rows.cache.get_seq_length()
        assert torch.equal(tree.position, rows.position) and torch.allclose(tree.last, rows.last, atol=1e-4)
        assert torch.allclose(*(b.append(*padded([[tiny.opening.tail] * len(texts)] * 2, 'cpu')) for b in (tree, rows)), atol=1e-4)

def test_prompts_of_different_length_are_padded(tiny):
    mask = model_inputs(tiny.processor, [tiny.views(p) for p in PHOTOS], tiny.prompt)['attention_mask']
    assert mask.min() == 0

def test_distribution_is_the_sum_over_all_subsets(tiny, exact):
    p, index, weight, given = branches_of(tiny, PHOTOS)
    inputs = model_inputs(tiny.processor, [tiny.views(x) for x in PHOTOS], tiny.prompt)
    with torch.no_grad(): distribution, present, likeliest = measure(tiny.model, inputs, tiny.opening, most=16, share=1.)
    for row in range(2):
        want, there = torch.zeros(len(KINDS), 101), dict.fromkeys(KINDS, 0.)
        for i, subset in enumerate(index[row].tolist()):
            want += p[row, subset] * given[row, i]
            for kind in tiny.opening.subsets[subset]: there[kind] += float(p[row, subset])
        assert torch.allclose(distribution[row], want, atol=1e-5) and torch.allclose(distribution.sum(-1), torch.ones(2, len(KINDS)), atol=1e-5)
        assert present[row].tolist() == pytest.approx([there[k] for k in KINDS], abs=1e-5)
        assert torch.allclose(present[row], 1 - distribution[row, :, 0], atol=1e-5)
        assert likeliest[row] == tiny.opening.subsets[int(p[row].argmax())]
    assert p.max() < .95, 'a mixture, not one branch'

def test_fewest_branches_that_hold_the_share():
    p = torch.tensor([[.05, .6, .15, .2], [0., 0., 1., 0.]])
    index, weight = most_probable(p, 4, .75)
    assert index.tolist() == [[1, 3], [2, 0]] and torch.allclose(weight, torch.tensor([[.75, .25], [1., 0.]]))
    assert most_probable(p, 1, .99)[1].tolist() == [[1.], [1.]]
    index, weight = most_probable(p, 4, 1.)
    assert index.shape == (2, 4) and torch.allclose(weight.sum(-1), torch.ones(2)) and weight[1].tolist() == [1., 0., 0., 0.]

def test_few_branches_are_near_all_of_them(tiny, exact):
    inputs = model_inputs(tiny.processor, [tiny.views(x) for x in PHOTOS], tiny.prompt)
    with torch.no_grad(): few, every = (measure(tiny.model, inputs, tiny.opening, 16, share)[0] for share in (.99, 1.))
    assert torch.allclose(few.sum(-1), torch.ones(2, len(KINDS)), atol=1e-5) and (few - every).abs().sum(-1).max() < .025

def test_the_cache_is_one_row_a_photo_and_is_left_by_the_digits(tiny):
    inputs = model_inputs(tiny.processor, [tiny.views(x) for x in PHOTOS], tiny.prompt)
    with torch.no_grad():
        branches = Branches(tiny.model, inputs)
        subset_probabilities(branches, tiny.opening)
        before = branches.cache.get_seq_length()
        digits = torch.tensor(tiny.opening.digits)
        first = branches.severity(digits)
        assert branches.cache.get_seq_length() == before == branches.visible.shape[2] and len(branches.cache.layers[0].keys) == 2
        assert torch.allclose(first, branches.severity(digits), atol=1e-6)

def test_replies_carry_what_is_measured(tiny, exact):
    found = tiny.severity_distribution(PHOTOS)
    assert found.shape == (2, len(KINDS), 101) and torch.allclose(found.sum(-1), torch.ones(2, len(KINDS)), atol=1e-5)
    for reply, distribution in zip(tiny.reply(PHOTOS, 8), found):
        assert torch.allclose(reply.distribution, distribution, atol=1e-6) and reply.present.shape == (len(KINDS),)
        assert torch.allclose(reply.severity, expected(distribution), atol=1e-3)

@pytest.mark.parametrize('threshold', (0., .2, .5, .8, 1.))
def test_reply_names_the_kinds_above_the_threshold(tiny, exact, threshold):
    reasoner = Reasoner(tiny.model, tiny.processor, SHORT_PROMPT, threshold=threshold)
    for reply in reasoner.reply(PHOTOS, 8):
        wanted = tuple(k for k, p in zip(KINDS, reply.present.tolist()) if p > threshold)
        named = re.match(r'1\. Identify: (.*)\.\n', reply.text)[1]
        assert named == (', '.join(wanted) or 'none')
        assert reply.diagnosis.present == wanted

def test_each_kind_can_have_its_own_threshold(tiny, exact):
    (present,) = (r.present.tolist() for r in tiny.reply(PHOTOS[:1], 8))
    for kind, p in zip(KINDS, present):
        reasoner = Reasoner(tiny.model, tiny.processor, SHORT_PROMPT, threshold=dict.fromkeys(KINDS, 1.) | {kind: p - 1e-4})
        assert reasoner.reply(PHOTOS[:1], 8)[0].diagnosis.present == (kind,)
        reasoner.threshold = {kind: 1.}  # one half for those that are left out
        assert kind not in (named := reasoner.reply(PHOTOS[:1], 8)[0].diagnosis.present)
        assert set(named) == {k for k, q in zip(KINDS, present) if q > .5} - {kind}

def test_digits_that_are_written_are_medians_given_the_text(tiny, exact):
    for photo in PHOTOS:
        reply, = tiny.reply(photo, 8)
        subset = tiny.opening.subsets.index(reply.diagnosis.present)
        _, index, _, given = branches_of(tiny, [photo])
        branch = given[0, index[0].tolist().index(subset)]
        assert [reply.diagnosis.severity(k) for k in KINDS] == median(branch).tolist()

def test_both_names_of_the_cache_are_known(tiny):
    from rr.reasoner import cache_argument
    class Older:
        def forward(self, input_ids, past_key_values=None): ...
    class Newer:
        def forward(self, input_ids, cache=None, **kwargs): ...
    assert cache_argument(Older()) == 'past_key_values' and cache_argument(Newer()) == 'cache'

def test_nothing_deprecated_is_called(tiny):
    photo = noise(64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter('error', FutureWarning)
        warnings.simplefilter('error', DeprecationWarning)
        tiny.severity(photo), tiny.reply(photo, 20), severity_with_gradient(tiny, photo[None])

def test_severity_is_the_same_every_time_and_in_any_batch(tiny, exact):
    photos = [noise(90, 130), noise(64, 64, seed=1), noise(200, 100, seed=2)]
    first = tiny.severity(photos)
    assert first.shape == (3, len(KINDS)) and 0 <= first.min() and first.max() <= 100
    assert torch.equal(first, tiny.severity(photos))
    assert torch.allclose(torch.cat([tiny.severity(p) for p in photos]), first, atol=2e-3)
    assert tiny.severity([]).shape == (0, len(KINDS))


def test_severity_with_gradient_is_the_severity_and_its_slope(tiny, exact):
    photos = torch.stack([noise(90, 130), noise(90, 130, seed=1) * .5]).requires_grad_()
    found = severity_with_gradient(tiny, photos)
    assert torch.allclose(found, tiny.severity(photos.detach()), atol=2e-3)
    slope, = torch.autograd.grad(found[0].sum(), photos)
    assert slope[1].abs().max() == 0 and slope[0].abs().max() > 0, 'a photo is not judged by another one'


def test_gradient_holds_the_doubt_about_stage_1(tiny, exact):
    "Nothing but P(S) moves the probability that a kind is there."
    inputs = model_inputs(tiny.processor, [tiny.views(PHOTOS[0])], tiny.prompt)
    inputs['pixel_values'].requires_grad_()
    distribution, *_ = measure(tiny.model, inputs, tiny.opening, share=1.)
    slope, = torch.autograd.grad(distribution[0, 0, 0], inputs['pixel_values'])
    assert slope.abs().max() > 0


def test_under_bfloat16_autocast_the_severity_stays_close(random_nano, monkeypatch):
    photos = [noise(64, 64), noise(90, 130, seed=1)]
    monkeypatch.setattr(rr.reasoner, 'autocast', lambda device: nullcontext())
    exact = random_nano.severity_distribution(photos)
    monkeypatch.setattr(rr.reasoner, 'autocast', lambda device: torch.autocast('cpu', dtype=torch.bfloat16))
    fast = random_nano.severity_distribution(photos)
    assert not torch.equal(fast, exact) and torch.allclose(fast.sum(-1), torch.ones(2, len(KINDS)), atol=1e-4)
    assert (expected(fast) - expected(exact)).abs().max() < 3


# Replies

def test_random_weights_still_write_a_legal_opening(tiny):
    for seed in range(3):
        reply, = tiny.reply(noise(80, 80, seed=seed), 60)
        numbers = ', '.join(rf'{kind} \d{{3}}' for kind in KINDS)
        assert re.match(rf'1\. Identify: .*\.\n2\. Quantify: {numbers}\.\n', reply.text)
        assert not reply.error and len(reply.tokens) == len(reply.probabilities)
        assert ''.join(reply.tokens)[:9] == reply.text[:9]
        assert all(0 <= p <= 1 for p in reply.probabilities) and reply.seconds > 0

def test_free_reply_without_diagnosis_says_so_and_invents_nothing(tiny):
    reply, = tiny.reply(noise(80, 80), 20, constrain=False)
    assert reply.error and reply.diagnosis == Diagnosis() and reply.severity is None
    with pytest.warns(UserWarning, match='no severity'):
        free = Reasoner(tiny.model, tiny.processor, SHORT_PROMPT)
        free.reply = lambda images, n: [reply]
        assert free.diagnose(noise(80, 80)) == [Diagnosis()]

def test_probabilities_are_the_models_own(tiny, exact):
    "Against a full forward over prompt and reply."
    photo = noise(80, 80)
    reply, = tiny.reply(photo, 50)
    inputs = model_inputs(tiny.processor, [tiny.views(photo)], tiny.prompt)
    new = torch.tensor([tiny.tokenizer.encode(reply.text[:reply.text.index('\n3') + 2])])
    ids = torch.cat([inputs['input_ids'], new], 1)
    types = torch.cat([inputs['mm_token_type_ids'], torch.zeros_like(new)], 1)
    with torch.no_grad():
        longer = dict(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types)
        logits = tiny.model(**dict(inputs) | longer, logits_to_keep=new.shape[1] + 1).logits[0, :-1]
    want = logits.softmax(-1).gather(1, new[0, :, None])[:, 0]
    assert torch.allclose(torch.tensor(reply.probabilities[:len(want)]), want, rtol=1e-3, atol=1e-7)

def test_model_in_training_mode_is_given_back_in_training_mode(tiny):
    tiny.model.train()
    tiny.severity(noise(64, 64))
    assert tiny.model.training
    tiny.model.eval()

def test_view_is_what_the_processor_would_make_of_the_photo(tiny):
    photo = noise(300, 210)
    direct = tiny.processor.image_processor(photo, do_rescale=False, return_tensors='pt')
    view = within_budget(photo, tiny.processor)
    again = tiny.processor.image_processor(view, do_rescale=False, return_tensors='pt')
    assert view.shape[1] % 32 == view.shape[2] % 32 == 0 and view[0].numel() <= 128 * 128
    assert torch.equal(direct['image_grid_thw'], again['image_grid_thw'])
    assert torch.allclose(direct['pixel_values'].clamp(-1, 1), again['pixel_values'], atol=1e-6)

def test_photo_that_the_processor_refuses(tiny):
    with pytest.raises(ReasonerError, match='8000x16 pixels'): tiny.reply(noise(16, 8000))


# Loading

@pytest.fixture(scope='module')
def folder(tmp_path_factory, tiny):
    path = tmp_path_factory.mktemp('reasoner')
    tiny.model.save_pretrained(path)
    tiny.processor.save_pretrained(path)
    return path

def test_saved_and_loaded_again_it_answers_the_same(tiny, folder, exact):
    loaded = Reasoner.from_pretrained(folder, device='cpu', dtype=torch.float32)
    assert loaded.prompt == FULL_PROMPT
    loaded.prompt = SHORT_PROMPT
    photo = noise(90, 70)
    assert torch.allclose(loaded.severity(photo), tiny.severity(photo), atol=1e-3)
    assert isinstance(loaded.diagnose(photo, 50)[0], Diagnosis)

def test_bfloat16_and_pixel_budget(folder):
    loaded = Reasoner.from_pretrained(str(folder), device='cpu', min_pixels=32 * 32, max_pixels=64 * 64)
    assert loaded.model.dtype == torch.bfloat16 and loaded.views(noise(500, 500))[0].shape == (3, 64, 64)
    assert loaded.severity(noise(500, 500)).isfinite().all()

@pytest.fixture(scope='module')
def adapter(tmp_path_factory, folder):
    "A LoRA adapter of the saved model that changes its answers; (folder, the model with it)."
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=['q_proj', 'v_proj']))
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if 'lora_B' in name: torch.nn.init.normal_(p, std=.3)
    model.peft_config['default'].base_model_name_or_path = str(folder)
    path = tmp_path_factory.mktemp('adapter')
    model.save_pretrained(path)
    return path, model

def test_lora_adapter_folder_loads_its_base_and_answers_like_the_tuned_model(tiny, adapter, exact):
    path, tuned = adapter
    photo = noise(90, 70)
    want = Reasoner(tuned, tiny.processor, SHORT_PROMPT).severity(photo)
    loaded = Reasoner.from_pretrained(path, device='cpu', dtype=torch.float32)
    loaded.prompt = SHORT_PROMPT
    assert torch.allclose(loaded.severity(photo), want, atol=1e-3)
    assert (want - tiny.severity(photo)).abs().max() > .5
    with pytest.raises(ValueError, match='has an adapter already'): teach(loaded, [], path, 'tiny')

def one_line(error): return '\n' not in str(error.value) and str(error.value)

def test_what_is_missing_is_said_in_one_line(tmp_path, folder, monkeypatch):
    with pytest.raises(ReasonerError, match='no such folder') as e:
        Reasoner.from_pretrained(tmp_path / 'nowhere')
    assert one_line(e)
    with pytest.raises(ReasonerError, match=r'weights .*tokenizer.json.* missing') as e:
        (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
        Reasoner.from_pretrained(tmp_path)
    assert one_line(e)
    with pytest.raises(ReasonerError, match='bert model; expected qwen3_vl'):
        for f in folder.iterdir(): (tmp_path / f.name).write_bytes(f.read_bytes())
        (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
        Reasoner.from_pretrained(tmp_path)
    with pytest.raises(ReasonerError, match="quantize is '3bit'"): Reasoner.from_pretrained(folder, quantize='3bit')
    with pytest.raises(ReasonerError, match='pip install bitsandbytes') as e:
        monkeypatch.setattr(rr.reasoner, 'find_spec', lambda name: None)
        Reasoner.from_pretrained(folder, quantize='4bit')
    assert one_line(e)

def test_damaged_weights_are_refused(tmp_path, folder):
    for f in folder.iterdir(): (tmp_path / f.name).write_bytes(f.read_bytes())
    weights = tmp_path / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(ReasonerError, match='weights cannot be read') as e:
        Reasoner.from_pretrained(tmp_path, device='cpu')
    assert one_line(e)

def test_missing_weight_is_not_replaced_by_random_numbers(tmp_path, folder):
    from safetensors.torch import load_file, save_file
    for f in folder.iterdir(): (tmp_path / f.name).write_bytes(f.read_bytes())
    weights = load_file(folder / 'model.safetensors')
    weights.pop(next(n for n in weights if 'layers.1' in n and 'q_proj' in n))
    save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ReasonerError, match='1 weights missing.*q_proj'):
        Reasoner.from_pretrained(tmp_path, device='cpu')

def test_hub_model_without_network(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')  # nobody listens there
    with pytest.raises(ReasonerError, match='hf download nobody/Qwen3-VL-Nothing') as e:
        Reasoner.from_pretrained('nobody/Qwen3-VL-Nothing')
    assert one_line(e)

@pytest.mark.parametrize('size,billions', [('2B', 2.13), ('4B', 4.44), ('8B', 8.77)])
def test_memory_of_the_real_shapes(size, billions):
    "Parameter counts as published on the model cards; the cache of 4096 tokens on top."
    config = qwen_config(size)
    t = config.text_config
    cache = 4096 * 2 * t.num_hidden_layers * 8 * 128
    assert (memory_needed(config, torch.float32) / 4 - cache) / 1e9 == pytest.approx(billions, abs=.01)
    assert memory_needed(config) == memory_needed(config, torch.float32) / 2
    assert .3 < memory_needed(config, quantize='4bit') / memory_needed(config) < .55

def test_model_larger_than_memory_is_refused_before_its_weights_are_read(tmp_path, folder, monkeypatch):
    for f in folder.iterdir():
        (tmp_path / f.name).write_bytes(b'' if f.suffix == '.safetensors' else f.read_bytes())
    qwen_config('4B').save_pretrained(tmp_path)
    monkeypatch.setattr(rr.reasoner, 'free_memory', lambda device: 2**33)
    wanted = r"needs 8\.\d GiB in bfloat16, 8.0 GiB are free on cpu: use quantize='4bit'"
    with pytest.raises(ReasonerError, match=wanted) as e:
        Reasoner.from_pretrained(tmp_path, device='cpu')
    assert one_line(e)


# Nano

@pytest.fixture(scope='module')
def random_nano(tmp_path_factory):
    "The nano size with random weights that are far from uniform, through a folder."
    from rr.finetune import sample_texts
    from rr.diagnosis import Scene
    from rr.nano import (build_nano_reasoner, nano_processor, nano_reasoner_config, save_nano_reasoner,
                         train_tokenizer)
    tokenizer = train_tokenizer(sample_texts([EXAMPLE.scene, Scene()], 400), vocab_size=600)
    torch.manual_seed(0)
    model = build_nano_reasoner(nano_reasoner_config(tokenizer, hidden_size=64, layers=3, heads=4))
    for p in model.model.language_model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.3)
    folder = tmp_path_factory.mktemp('nano')
    save_nano_reasoner(model, nano_processor(tokenizer), folder)
    return Reasoner.from_pretrained(folder, device='cpu')

def test_folder_with_nano_weights_is_known_as_nano(random_nano):
    views, photo = nano_views(noise(300, 200)), noise(300, 200)
    assert random_nano.prompt == SHORT_PROMPT and all(map(torch.equal, random_nano.views(photo), views))

def test_branches_equal_brute_force_for_nano(random_nano, exact):
    same_as_brute_force(random_nano, [noise(90, 130), noise(200, 300, seed=1) * .5], (0, 3), (KINDS[0], KINDS[-1]))

def test_true_chains_of_thought_pass_the_guide_of_nano(random_nano):
    from rr.finetune import sample_texts
    for text in sample_texts([EXAMPLE.scene], 100, seed=5):
        node = random_nano.opening.root
        for token in random_nano.tokenizer.encode(text):
            if not node: break
            node = node[token]
        assert node == {}

@pytest.fixture(scope='module')
def nano(): return Reasoner.from_pretrained('nano', device='cpu')

def test_nano_reads_every_bundled_photo(nano):
    photos = [read_photo(p).image for p in bundled_photos().values()]
    replies = nano.reply(photos)
    for reply in replies:
        assert not reply.error and reply.distribution.shape == (len(KINDS), 101)
        assert torch.allclose(reply.distribution.sum(-1), torch.ones(len(KINDS)), atol=1e-4)
        assert reply.diagnosis.present == tuple(k for k, p in zip(KINDS, reply.present) if nano.names(k, float(p)))
    assert torch.allclose(torch.stack([r.severity for r in replies]), nano.severity(photos), atol=.5)

def test_nano_slope_is_that_of_small_steps(nano, exact):
    photo = degrade(read_photo(bundled_photos()['lake']).image[:, :192, :192], {'fog': 60, 'noise': 30}, seed=1).image.clamp(.05, .95)
    pixels = photo[None].clone().requires_grad_()
    severity_with_gradient(nano, pixels).sum().backward()
    direction = pixels.grad[0] / pixels.grad.norm()
    for length in (.001, .002):  # larger steps cross kinks of the ReLUs
        ahead, behind = (float(nano.severity(photo + sign * length * direction).sum()) for sign in (1, -1))
        assert (ahead - behind) / (2 * length) == pytest.approx(float(pixels.grad.norm()), rel=.05)


def as_jpeg(image): return DEGRADATIONS['jpeg'].apply(image, dict(quality=90, chroma='half'), None)
def as_grey(image): return image.mean(0, keepdim=True).expand(3, -1, -1)

@pytest.mark.parametrize('store, left', ((as_jpeg, 1.), (as_grey, 3 ** -.5)))  # the mean of three independent values
def test_noise_is_still_seen_in_what_a_file_holds(nano, store, left):
    "Weights that learnt from unstored photos alone looked for coloured specks, and saw no noise at all without."
    expected, found = severity_of('noise', 'sigma', strength('noise', 60)['sigma'] * left), []
    for name in ('coffee', 'lake', 'astronaut', 'rocket'):
        noisy = degrade(read_photo(bundled_photos()[name]).image, {'noise': 60}, seed=1).image
        found.append(float(nano.severity([store(noisy)])[0][nano.kinds.index('noise')]))
    assert sum(abs(s - expected) < 20 for s in found) >= 3 and min(found) > 15, (expected, found)


def test_nano_openings_are_canonical(nano):
    for walk in paths(nano.opening.root, 50): assert nano.tokenizer.encode(nano.tokenizer.decode(walk)) == walk

def test_nano_takes_no_qwen_options():
    with pytest.raises(ReasonerError, match='Qwen size'): Reasoner.from_pretrained('nano', quantize='4bit')


def test_nano_in_half_the_memory(nano, exact):
    "The fingerprint is that of the saved weights; without bfloat16 units nothing casts what the tower sees."
    seven, half = (Reasoner.from_pretrained(name, device='cpu', dtype=torch.bfloat16) for name in ('nano-seven', 'nano'))
    assert seven.model.dtype == half.model.dtype == torch.bfloat16 and nano.model.dtype == torch.float32
    foggy = degrade(read_photo(bundled_photos()['coffee']).image[:, :200, :200], {'fog': 60}, seed=1).image
    assert (half.severity(foggy) - nano.severity(foggy)).abs().max() < 8

def test_photos_are_read_batch_by_batch(nano, monkeypatch, tmp_path):
    read = []
    given = lambda found: found if torch.is_tensor(found) else read.append(found) or noise(64, 64)
    monkeypatch.setattr(rr.reasoner, 'to_tensor', given)
    reasoner = Reasoner(nano.model, nano.processor, nano.prompt, nano.make_views, batch_size=2)
    batches = reasoner.batches([f'{i}.png' for i in range(5)])
    assert [next(batches) and len(read) for _ in range(3)] == [2, 4, 5] and next(batches, None) is None


def looking(reasoner, looks):
    "The same reasoner, with other looks."
    other = copy(reasoner)
    other.looks = looks
    return other


def test_looks_take_in_corners_and_middle():
    photo = torch.arange(90.).view(1, 9, 10).expand(3, -1, -1)
    first, *_, last, middle = (part_of(photo, look) for look in corner_looks(.5))
    assert first[0, 0, 0] == 0 and last[0, -1, -1] == 89 and part_of(photo, WHOLE[0]).equal(photo)
    assert first.shape == (3, 4, 5) and middle[0, 0, 0] == 22
    assert all(part_of(torch.zeros(3, 1, 1), look).shape == (3, 1, 1) for look in corner_looks(.5))
    assert part_of(torch.zeros(3, 4, 4), (.9, .9, 1, 1)).shape == (3, 1, 1)


@pytest.mark.parametrize('looks', [(), [(0, 0, 0, 1)], [(0, 0, 1, 1.5)], [(.5, 0, .2, 1)], [(-.1, 0, 1, 1)]])
def test_strange_looks_are_refused(nano, looks):
    with pytest.raises(ValueError, match='look'):
        Reasoner(nano.model, nano.processor, nano.prompt, nano.make_views, looks=looks)


def test_several_looks_measure_their_mean(nano):
    photos, several = [noise(90, 130), noise(120, 100, seed=1)], looking(nano, corner_looks())
    distribution, present = several.severity_distribution(photos), several.presence(photos)
    for photo, d, p in zip(photos, distribution, present):
        parts = [part_of(photo, look) for look in corner_looks()]
        assert torch.allclose(d, nano.severity_distribution(parts).mean(0), atol=1e-5)
        assert torch.allclose(p, nano.presence(parts).mean(0), atol=1e-5)
    with_gradient = severity_with_gradient(several, photos[0][None])
    assert torch.allclose(with_gradient.detach(), several.severity(photos[0]), atol=1e-3)


def test_several_looks_write_one_text(nano):
    photos = [degrade(noise(120, 130, seed=s), {'fog': 70, 'noise': 30 * s}, seed=s).image for s in range(2)]
    once, again = nano.reply(photos), looking(nano, WHOLE * 3).reply(photos)
    for a, b in zip(once, again, strict=True):  # three times the same look
        assert a.text == b.text and torch.tensor(a.probabilities).allclose(torch.tensor(b.probabilities), atol=1e-3)
    several = looking(nano, corner_looks())
    together = several.reply(photos)
    for photo, r in zip(photos, together, strict=True):
        alone, = several.reply(photo)
        assert r.text == alone.text and not r.error and len(r.tokens) == len(r.probabilities)


def test_the_mean_of_the_looks_decides(tiny):
    one, sure = torch.tensor([.3, .7, 0.]), torch.tensor([.98, .02, 0.])
    scores, ids = torch.stack([one, sure, one]).log().repeat(2, 1) + 5, torch.zeros(6, 1, dtype=torch.long)
    mean = torch.stack([one, sure, one]).mean(0).expand(2, -1)
    assert rr.reasoner.together(scores, 3).exp().allclose(mean, atol=1e-6) and rr.reasoner.together(scores, 1) is scores
    guide = Guide(None, tiny.tokenizer, looks=3)
    assert guide(ids, scores).argmax(-1).tolist() == [0] * 6, 'all looks at a photo write the same token'
    assert guide.probabilities[0].allclose(mean[:, 0], atol=1e-6)


def test_a_reply_knows_when_each_token_came():
    reasoner = Reasoner.from_pretrained('nano')
    first, second = reasoner.reply([noise(96, 96), noise(96, 96, seed=1)])
    for r in (first, second):
        assert len(r.times) == len(r.tokens) and all(0 < a < b for a, b in zip(r.times, r.times[1:]))
        assert r.times[-1] <= 2 * r.seconds  # two photos share the batch
