"""The protocol of a secure sum: shares, masks, drop-outs before and after masking, too few, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plures.errors import PluresError
from plures.method.wire import enough
from plures.secure import (
    SHARE,
    DealtError,
    Member,
    Members,
    Revealed,
    faithful,
    gather,
    member,
    recover,
    remaining,
    split,
)
from plures.secure.member import DIGEST, agreed, entropy, pair, stream

D = 5
WORDS = {n: np.arange(D, dtype=np.uint32) + np.uint32(2**32 - 6 + n) for n in range(1, 6)}
"""Uploads of five members, near the modulus."""


@pytest.mark.oracle("SA1")
def test_shares_over_eleven_by_hand():
    """7 + 3u + 2u^2: any three shares give 7, and any two fit all eleven secrets."""
    coefficients = iter([3, 2])
    shares = split(7, 3, [1, 2, 3, 4, 5], lambda: next(coefficients), prime=11)
    assert shares == {1: 1, 2: 10, 3: 1, 4: 7, 5: 6}
    for places in itertools.combinations(shares, 3):
        assert recover({place: shares[place] for place in places}, prime=11) == 7
    for one, two in itertools.combinations([1, 2, 3, 4], 2):
        secrets = {recover({one: shares[one], two: shares[two], 5: third}, prime=11) for third in range(11)}
        assert secrets == set(range(11))


@pytest.mark.oracle("SA2")
def test_thresholds():
    assert [enough(n, 1 / 2) for n in (2, 3, 5, 10, 100)] == [2, 2, 3, 6, 51]
    assert [enough(n, 2 / 3) for n in (3, 5, 10, 100)] == [3, 4, 7, 67]


def began(asked=5, threshold=3, deal=None):
    """Members of whom some have dealt, their public keys, and what was sealed for each."""
    members = {n: Member(n, entropy(f"test {n}")) for n in range(1, asked + 1)}
    publics = {n: member.public for n, member in members.items()}
    dealt = {n: members[n].deal(publics, threshold) for n in deal or members}
    return members, publics, {to: {by: boxes[to] for by, boxes in dealt.items() if by != to} for to in members}


@pytest.mark.oracle("SA0")
@pytest.mark.parametrize(("came", "masks", "total"), [((1, 2, 3), 10, 14), ((1, 2), 13, 8), ((1, 3), 10, 9)])
def test_three_masked_numbers_by_hand(monkeypatch, came, masks, total):
    """Modulo 16, x = (3, 5, 6), pairs 4, 7, 9, own masks 2, 11, 13: 0, 5, 3 are sent; 8 - 26 is 14, and 5 - 13 is 8.

    The second is the sum 3 + 5 after the third dropped out: own masks 2 and 11; 7 + 9 of the pairs with it is 0. In the
    last the second dropped out, and the pairs with it leave 4 - 9: 3 - (2 + 13 + 4 - 9) is 9.
    """
    members, publics, sealed = began(3, 2)
    given = {_secrets(n)[2]: mask for n, mask in {1: 2, 2: 11, 3: 13}.items()}
    for (one, two), mask in {(1, 2): 4, (1, 3): 7, (2, 3): 9}.items():
        given[agreed(_secrets(one)[1], publics[two].mask, b"plures masks")] = mask
    for module in (member, gather):
        monkeypatch.setattr(module, "stream", lambda seed, count: np.full(count, given[seed], dtype=np.uint32))
    sent = {n: members[n].masked(np.array([x], dtype=np.uint32), sealed[n]) for n, x in {1: 3, 2: 5, 3: 6}.items()}
    assert [int(words[0]) % 16 for words in sent.values()] == [0, 5, 3]
    revealed = {n: members[n].reveal(came) for n in came}
    left = remaining(publics, [1, 2, 3], came, revealed, 2, 1)
    assert int(left[0]) % 16 == masks
    assert int((sum(sent[n] for n in came) - left)[0]) % 16 == total


@pytest.mark.oracle("SA3")
@pytest.mark.parametrize("dealt", [[1, 2, 3, 4, 5], [1, 2, 3, 5]])
@pytest.mark.parametrize("came", [[1, 2, 3, 5], [2, 3, 5], [1, 2, 3]])
@pytest.mark.parametrize("late", [[], [1]])
def test_the_sum_of_those_who_came_is_exact(dealt, came, late):
    """Some drop out before they deal, some after it, and one after its upload, before it reveals."""
    members, publics, sealed = began(deal=dealt)
    total = np.zeros(D, dtype=np.uint32)
    for n in came:
        total += members[n].masked(WORDS[n], sealed[n])
    revealed = {n: members[n].reveal(came) for n in came if n not in late}
    if len(revealed) < 3:
        with pytest.raises(PluresError, match="2 clients stayed to the end, and 3 must: there is no sum"):
            remaining(publics, dealt, came, revealed, 3, D)
        return
    total -= remaining(publics, dealt, came, revealed, 3, D)
    assert total.tolist() == [sum(int(WORDS[n][i]) for n in came) % 2**32 for i in range(D)]
    for shares in revealed.values():  # of nobody both: that would bare an upload
        assert (sorted(shares.own), sorted(shares.keys)) == (came, sorted(set(dealt) - set(came)))


@pytest.mark.oracle("SA4")
def test_masks_of_a_pair_cancel_and_look_like_noise():
    secrets = [entropy(name)(32) for name in "ab"]
    one, two = (Member(n, lambda count, s=s: s[:count].ljust(count, b"x")) for n, s in enumerate(secrets, 1))
    a, b = pair(secrets[0], 1, two.public.mask, 2, 1000), pair(secrets[1], 2, one.public.mask, 1, 1000)
    assert not (a + b).any()
    assert (a / 2**32).mean() == pytest.approx(0.5, abs=0.04)


def test_a_masked_upload_is_hidden_by_its_own_mask_and_those_of_all_pairs():
    nothing = np.zeros(D, dtype=np.uint32)
    members, _, sealed = began()
    alone, _, _ = began()
    masked = members[1].masked(nothing, sealed[1])
    fewer = alone[1].masked(nothing, {by: box for by, box in sealed[1].items() if by != 5})
    own = stream(_secrets(1)[2], D)
    assert len({tuple(masked), tuple(fewer), tuple(own), tuple(nothing)}) == 4


def _secrets(member):
    """What a member draws first: its keys for shares and for masks of pairs, and the seed of its own mask."""
    draw = entropy(f"test {member}")
    return [draw(32) for _ in range(3)]


@pytest.mark.oracle("SA5")
def test_too_few_reveal_nothing():
    members, _, sealed = began()
    members[1].masked(WORDS[1], sealed[1])
    with pytest.raises(PluresError, match="uploads of 2 clients came, and 3 must: nothing is revealed"):
        members[1].reveal([1, 2])
    with pytest.raises(PluresError, match="asked for 'reveal', and its next step is 'nothing'"):
        members[1].reveal([1, 2, 3])


def test_too_few_that_dealt_get_nothing():
    members, _, sealed = began(deal=[1, 2])
    with pytest.raises(PluresError, match="2 clients dealt shares, and 3 must: nothing is sent"):
        members[1].masked(WORDS[1], sealed[1])


def test_nobody_answers_twice():
    members, publics, sealed = began()
    with pytest.raises(PluresError, match="asked for 'deal', and its next step is 'masked'"):
        members[1].deal(publics, 3)
    members[1].masked(WORDS[1], sealed[1])
    with pytest.raises(PluresError, match="asked for 'masked', and its next step is 'reveal'"):
        members[1].masked(WORDS[2], sealed[1])
    members[1].reveal([1, 2, 3])
    with pytest.raises(PluresError, match="its next step is 'nothing'"):
        members[1].reveal([1, 2, 4])


@pytest.mark.parametrize("threshold", [1, 2, 6])
def test_thresholds_that_protect_nobody_are_refused(threshold):
    with pytest.raises(PluresError, match="at least 2, more than half of them, and no more than all"):
        began(threshold=threshold)


@pytest.mark.oracle("SA5")
def test_a_sum_of_one_is_refused():
    with pytest.raises(PluresError, match="a secure sum of 1 clients"):
        began(asked=1, threshold=1)


def test_keys_that_the_server_exchanged_are_noticed():
    members = {n: Member(n, entropy(f"test {n}")) for n in (1, 2, 3)}
    publics = {n: member.public for n, member in members.items()}
    with pytest.raises(PluresError, match="keys that are not this client's"):
        members[1].deal(publics | {1: publics[2]}, 2)
    with pytest.raises(PluresError, match="the same keys twice"):
        members[2].deal(publics | {1: publics[3]}, 2)


def test_shares_that_were_changed_on_their_way_are_noticed():
    members, _, sealed = began()
    box = bytearray(sealed[1][2])
    box[-1] ^= 1
    with pytest.raises(PluresError, match="what member 2 dealt was changed on its way"):
        members[1].masked(WORDS[1], sealed[1] | {2: bytes(box)})
    with pytest.raises(PluresError, match="what member 3 dealt was changed on its way"):
        members[4].masked(WORDS[4], sealed[4] | {3: sealed[4][2]})


def test_simulated_members_repeat_and_differ_by_round():
    names = ["a", "b", "c"]
    one, again, other = (Members(names, 2, seed) for seed in ("0/0", "0/0", "0/1"))
    sent = [members.masked("a", WORDS[1]).tolist() for members in (one, again, other)]
    assert sent[0] == sent[1] != sent[2]
    total = np.array(sent[0], dtype=np.uint32) + one.masked("c", WORDS[3])
    assert (total - one.remaining(["a", "c"], D)).tolist() == (WORDS[1] + WORDS[3]).tolist()


def test_who_deals_other_shares_than_its_digests_say_is_named_by_who_opens_them():
    """The digests of another member's box, sealed anew by the dealer: nobody but the dealer can do that."""
    members, _, sealed = began()
    dealer = members[2]
    nonce, digests = bytes(12), sealed[3][2][: 2 * DIGEST]
    text = (5).to_bytes(SHARE) + (6).to_bytes(SHARE)
    box = digests + nonce + dealer._box(1).encrypt(nonce, text, dealer._route(2, 1) + digests)
    with pytest.raises(PluresError, match="member 2 dealt other shares than the digests beside them say"):
        members[1].masked(WORDS[1], sealed[1] | {2: box})
    altered = sealed[3][2][: 2 * DIGEST] + sealed[1][2][2 * DIGEST :]
    with pytest.raises(PluresError, match="what member 2 dealt was changed on its way"):
        began()[0][1].masked(WORDS[1], sealed[1] | {2: altered})


def test_a_share_that_was_not_dealt_is_known_by_its_digest():
    members, _, sealed = began()
    for n in members:
        members[n].masked(WORDS[n], sealed[n])
    said = members[1].reveal([1, 2, 3, 4])
    dealt = {by: {to: boxes[by] for to, boxes in sealed.items() if by != to} for by in members}
    assert faithful(1, said, dealt) is None
    assert faithful(1, Revealed(dict(said.own) | {3: said.own[3] + 1}, said.keys), dealt) == 3
    assert faithful(1, Revealed(said.own, {5: said.keys[5] ^ 1}), dealt) == 5


@pytest.mark.parametrize("kind", ["own", "keys"])
def test_shares_that_do_not_fit_together_name_their_dealer(kind):
    """Five shares of a polynomial of degree 2, one of which is another: the first three and the last three differ."""
    members, publics, sealed = began()
    for n in members:
        members[n].masked(WORDS[n], sealed[n])
    said = {n: members[n].reveal([1, 2, 3, 4]) for n in (1, 2, 3, 4)}
    dealer = {"own": 2, "keys": 5}[kind]
    spoilt = dict(getattr(said[4], kind)) | {dealer: 7}
    said[4] = Revealed(spoilt if kind == "own" else said[4].own, spoilt if kind == "keys" else said[4].keys)
    with pytest.raises(DealtError, match=f"the shares that member {dealer} dealt do not fit together"):
        remaining(publics, members, [1, 2, 3, 4], said, 3, 4)
