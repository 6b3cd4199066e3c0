"""Words back to facts: by hand, and the refusal of everything else."""

import pytest

from dreamllm.world.reading import Facts, GrammarError, ObjectFacts, read_text, shows_something

CIRCLE = ObjectFacts("circle", "red", "small", "top left")
SQUARE = ObjectFacts("square", "blue", "large", "bottom right")
BOTH = Facts((CIRCLE, SQUARE), "white", is_complete=True)


@pytest.mark.parametrize(
    "text",
    [
        "A small red circle at the top left and a large blue square at the bottom right on a white "
        "background.",
        "On a white background, there is a small red circle at the top left and a large blue square at the "
        "bottom right.",
        "The picture has a white background. It shows two shapes. At the top left there is a circle. It is "
        "small and its color is red. The bottom right holds a large square. The color of this shape is blue.",
        "The picture has a white background. It shows two shapes. A red shape stands at the top left. This "
        "shape is a small circle. At the bottom right there is a square. It is large and its color is blue. "
        "Nothing is at the top right.",
        "First, a small red circle at the top left and a large blue square at the bottom right on a white "
        "background.",
        "How to draw a red circle and a blue square. Step one: take a white background and draw a small red "
        "circle at the top left. Step two: add a large blue square at the bottom right.",
    ],
)
def test_the_same_facts_are_read_from_every_wording(text: str) -> None:
    assert read_text(text) == BOTH


def test_a_short_caption_says_what_but_not_where() -> None:
    facts = read_text("A red circle, an orange star and a pink cross.")

    assert facts == Facts(
        (ObjectFacts("circle", "red"), ObjectFacts("star", "orange"), ObjectFacts("cross", "pink")),
        is_complete=True,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Then, the circle at the top left turns green.",
            Facts((ObjectFacts("circle", "green", "small", "top left"), SQUARE), "white", True),
        ),
        (
            "Next, the square at the bottom right becomes small.",
            Facts((CIRCLE, ObjectFacts("square", "blue", "small", "bottom right")), "white", True),
        ),
        (
            "After that, the circle at the top left moves to the top right.",
            Facts((ObjectFacts("circle", "red", "small", "top right"), SQUARE), "white", True),
        ),
        ("Then, the square at the bottom right disappears.", Facts((CIRCLE,), "white", True)),
        ("Next, the background turns black.", Facts((CIRCLE, SQUARE), "black", True)),
        (
            "Then, a large yellow star at the bottom left appears.",
            Facts((CIRCLE, SQUARE, ObjectFacts("star", "yellow", "large", "bottom left")), "white", True),
        ),
        ("Nothing changes for a while.", BOTH),
        ("The end.", BOTH),
        ("", BOTH),
    ],
)
def test_a_sentence_of_change_changes_what_was_known(text: str, expected: Facts) -> None:
    assert read_text(text, BOTH) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A small red circle on the moon.",
        "A small red hexagon at the top left.",
        "red circle",
        "The circle at the top left turns",
        "A red circle. And so on.",
        "Then, the star at the top left turns green.",
        "The color of this shape is blue.",
        "\u00e9t\u00e9",
        "Then, .",
        "(((",
    ],
)
def test_what_the_grammar_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(GrammarError):
        read_text(text)


def test_the_error_names_the_sentence() -> None:
    with pytest.raises(GrammarError, match=r"the world's grammar has no sentence 'It rains\.'"):
        read_text("A red circle. It rains.")


@pytest.mark.parametrize(
    ("sentence", "shows"),
    [
        ("A small red circle at the top left on a white background.", True),
        (" Then, the circle at the top left turns red.", True),
        ("Step one: take a white background and draw a small red circle at the top left.", True),
        ("Step two: add a large blue square at the top right.", True),
        ("Then, the background turns black.", True),
        ("First, a red circle.", True),
        ("This is the story of two pictures.", False),
        ("Here are three pictures.", False),
        ("How to draw a red circle.", False),
        ("Nothing changes for a while.", False),
        ("The end.", False),
        ("The drawing is done.", False),
        ("These are all the pictures.", False),
        ("It rains.", False),
        ("", False),
    ],
)
def test_a_picture_belongs_after_a_sentence_that_shows_something_new(sentence: str, shows: bool) -> None:
    assert shows_something(sentence) is shows


@pytest.mark.parametrize(
    ("text", "thing"),
    [
        ("A zorp is a large red circle.", ObjectFacts("circle", "red", "large")),
        ("A zorp is a small blue star.", ObjectFacts("star", "blue", "small")),  # what is said, though wrong
        ("A large red circle is called a zorp.", ObjectFacts("circle", "red", "large")),
        ("Zorps are large red crosses.", ObjectFacts("cross", "red", "large")),
        ("Zorps are red.", ObjectFacts(color="red")),
        ("Zorps are large.", ObjectFacts(size="large")),
        ("Zorps are circles.", ObjectFacts(shape="circle")),
        ("The color of an olun is cyan.", ObjectFacts(color="cyan")),
        ("The size of an olun is large.", ObjectFacts(size="large")),
        ("The shape of an olun is a triangle.", ObjectFacts(shape="triangle")),
    ],
)
def test_what_a_noun_is_said_to_mean_is_read_and_shows_nothing(text: str, thing: ObjectFacts) -> None:
    assert read_text(text) == Facts((thing,))
    assert not shows_something(text)


@pytest.mark.parametrize(
    "text", ["A blorp is a large red circle.", "Draw a blorp.", "A zorp is large.", "Zorps."]
)
def test_words_that_mean_nothing_are_errors(text: str) -> None:
    with pytest.raises(GrammarError):
        read_text(text)
