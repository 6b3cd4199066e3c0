from dataclasses import replace

import pytest
from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.errors import ConfigError, DocumentError
from dreamllm.sequence.chat import (
    CHAT_TEMPLATES,
    CHATML,
    PLAIN_CHAT,
    VICUNA_V1_1,
    ChatTemplate,
    EndOfTurn,
    Markup,
    Piece,
    chat_template,
)

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PICTURE = PILImage.new("RGB", (4, 4))


def written(pieces: list[Piece]) -> str:
    """The conversation as one string, with [] where a picture stands."""
    return "".join(
        piece.text if isinstance(piece, Markup | Text) else "</s>" if isinstance(piece, EndOfTurn) else "[]"
        for piece in pieces
    )


def user(text: str) -> Text:
    return Text(text=text, role="user")


def assistant(text: str) -> Text:
    return Text(text=text, role="assistant")


TWO_TURNS = Document(parts=(user("hi"), assistant("hello"), user("bye"), assistant("see you")))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (VICUNA_V1_1, SYSTEM + " USER: hi ASSISTANT: hello</s>USER: bye ASSISTANT: see you</s>"),
        (PLAIN_CHAT, "USER: hi ASSISTANT: hello</s>USER: bye ASSISTANT: see you</s>"),
        (
            CHATML,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello</s>\n"
            "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\nsee you</s>",
        ),
    ],
)
def test_two_turns_are_written_with_the_exact_spacing(template: ChatTemplate, expected: str) -> None:
    assert written(template.render(TWO_TURNS)) == expected


@pytest.mark.parametrize("template", CHAT_TEMPLATES.values())
def test_a_prompt_is_a_prefix_of_the_training_form_piece_by_piece(template: ChatTemplate) -> None:
    full = template.render(TWO_TURNS)

    for num_parts in (1, 3):
        prompt = template.render(Document(parts=TWO_TURNS.parts[:num_parts]), prompt=True)

        assert prompt == full[: len(prompt)]
        assert isinstance(full[len(prompt)], Text)
        assert written(prompt).endswith(template.assistant_prefix)


def test_an_unfinished_answer_is_left_open_in_a_prompt() -> None:
    document = Document(parts=(user("which colour?"), assistant("The colour is ")))

    assert written(PLAIN_CHAT.render(document, prompt=True)) == "USER: which colour? ASSISTANT: The colour is"


def test_content_is_stripped_and_gets_one_space() -> None:
    document = Document(parts=(user("  hi\n"), assistant("\n hello  you ")))

    assert written(PLAIN_CHAT.render(document)) == "USER: hi ASSISTANT: hello  you</s>"


def test_text_after_a_picture_has_the_same_space_as_text_after_the_colon() -> None:
    parts = (
        Image(source=PICTURE, role="user"),
        Image(source=PICTURE, role="user"),
        user("what is it?"),
        assistant("two"),
        Image(source=PICTURE, role="assistant"),
        assistant(" and three"),
    )

    assert (
        written(PLAIN_CHAT.render(Document(parts=parts)))
        == "USER:[][] what is it? ASSISTANT: two[] and three</s>"
    )


def test_neighbouring_texts_of_one_turn_are_joined_as_they_stand() -> None:
    parts = (user("hi"), Text(text="The answer is", role="assistant", learn=False), assistant(" red. "))

    pieces = PLAIN_CHAT.render(Document(parts=parts))

    assert written(pieces) == "USER: hi ASSISTANT: The answer is red.</s>"
    assert [piece.learn for piece in pieces if isinstance(piece, Text)] == [True, False, True]


def test_blank_text_leaves_no_space_behind() -> None:
    document = Document(
        parts=(Image(source=PICTURE, role="user"), user(" \n"), assistant(" "), assistant(" x"))
    )

    assert written(PLAIN_CHAT.render(document)) == "USER:[] ASSISTANT: x</s>"


def test_a_system_part_replaces_the_sentence_of_the_template() -> None:
    document = Document(parts=(Text(text=" Be brief. ", role="system"), user("hi"), assistant("yes")))

    assert written(VICUNA_V1_1.render(document)) == "Be brief. USER: hi ASSISTANT: yes</s>"
    assert written(PLAIN_CHAT.render(document)) == "Be brief. USER: hi ASSISTANT: yes</s>"
    assert written(CHATML.render(document)).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )


GEMMA = ChatTemplate(
    name="gemma",
    system="",
    system_prefix="",
    system_end="\n\n",
    user_prefix="<user>\n",
    user_end="<end>\n",
    assistant_prefix="<model>\n",
    assistant_end="\n",
    content_prefix="",
    system_in_user_turn=True,
)
BE_BRIEF = Text(text=" Be brief. ", role="system")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((BE_BRIEF, user(" hi ")), "<user>\nBe brief.\n\nhi<end>\n<model>\n"),
        (
            (BE_BRIEF, Image(source=PICTURE, role="user"), user("hi")),
            "<user>\nBe brief.[]hi<end>\n<model>\n",
        ),
        (
            (BE_BRIEF, assistant("hi"), user("yo")),
            "<user>\nBe brief.<end>\n<model>\nhi</s>\n<user>\nyo<end>\n<model>\n",
        ),
        (
            (user("hi"), assistant("yo"), BE_BRIEF),
            "<user>\nhi<end>\n<model>\nyo</s>\n<user>\nBe brief.<end>\n<model>\n",
        ),
    ],
)
def test_a_system_text_can_be_what_the_user_says_first(parts: tuple[Part, ...], expected: str) -> None:
    assert written(GEMMA.render(Document(parts=parts), prompt=True)) == expected


def test_the_users_words_are_one_piece_with_a_system_text_in_their_turn() -> None:
    pieces = GEMMA.render(Document(parts=(BE_BRIEF, user("hi"))), prompt=True)

    assert pieces == [Markup("<user>\n"), user("Be brief.\n\nhi"), Markup("<end>\n<model>\n")]


def test_a_space_at_the_end_of_a_prefix_goes_with_the_word_after_it() -> None:
    template = replace(GEMMA, user_prefix="[INST] ", user_end=" [/INST]", assistant_prefix="")

    pieces = template.render(Document(parts=(user("hi"),)), prompt=True)

    assert pieces == [Markup("[INST]"), user(" hi"), Markup(" [/INST]")]


def test_an_opening_stands_before_a_conversation_without_a_system_part() -> None:
    template = replace(PLAIN_CHAT, opening="[today] ")

    assert written(template.render(Document(parts=(user("hi"),)))) == "[today] USER: hi"
    assert written(template.render(Document(parts=(BE_BRIEF, user("hi"))))) == "Be brief. USER: hi"


def test_a_template_without_a_place_for_a_system_text_refuses_it() -> None:
    template = replace(PLAIN_CHAT, refuses_system="it moves")

    assert written(template.render(Document(parts=(user("hi"),)))) == "USER: hi"
    with pytest.raises(
        DocumentError, match=r"'d' has a system part, .*'plain_chat' takes none: it moves; say"
    ):
        template.render(Document(id="d", parts=(BE_BRIEF, user("hi"))))


def test_what_a_user_types_is_never_markup() -> None:
    pieces = CHATML.render(Document(parts=(user("<|im_end|>"),)), prompt=True)

    assert [piece for piece in pieces if isinstance(piece, Text)] == [user("<|im_end|>")]


def test_an_unknown_template_offers_the_nearest_name() -> None:
    assert chat_template("chatml") is CHATML

    with pytest.raises(ConfigError, match=r"'vicuna'; expected one of .*did you mean 'vicuna_v1_1'\?"):
        chat_template("vicuna")
