import torch
from torch.testing import assert_close

from dreamllm.models.splice import read_slots, write_slots


def example():
    torch.manual_seed(0)
    embeds = torch.randn(2, 6, 3, requires_grad=True)
    features = torch.randn(3, 2, 3, requires_grad=True)
    slots = torch.tensor([[1, 2], [7, 8], [10, 11]])
    return embeds, features, slots


def by_hand(embeds, features, slots):
    result = embeds.clone()
    for image, positions in enumerate(slots.tolist()):
        for token, position in enumerate(positions):
            result[position // 6, position % 6] = features[image, token]
    return result


def test_writing_equals_a_loop_by_hand_in_value_and_gradient():
    embeds, features, slots = example()
    seed = torch.randn(2, 6, 3)
    before = embeds.detach().clone()
    expected = by_hand(embeds, features, slots)
    gradients = torch.autograd.grad((expected * seed).sum(), [embeds, features])

    written = write_slots(embeds, features, slots)

    assert_close(written, expected)
    assert_close(torch.autograd.grad((written * seed).sum(), [embeds, features]), gradients)
    assert_close(embeds.detach(), before)


def test_reading_gives_back_what_was_written():
    embeds, features, slots = example()

    assert_close(read_slots(write_slots(embeds, features, slots), slots), features)


def test_no_slot_changes_nothing_and_reads_nothing():
    embeds, features, slots = example()

    written = write_slots(embeds, features[:0], slots[:0])

    assert_close(written, embeds)
    assert read_slots(embeds, slots[:0]).shape == (0, 2, 3)


def test_features_take_the_type_of_the_embeddings():
    embeds, features, slots = example()

    assert write_slots(embeds.bfloat16(), features, slots).dtype == torch.bfloat16
