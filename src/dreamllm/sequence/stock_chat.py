"""Chat templates of the stock library, which are Jinja programs: theirs read as ours, ours written as theirs.

`template_of` lets a tokenizer spell probe conversations and cuts between what is said; the pieces it finds
must then spell other conversations exactly. Ids are those of `apply_chat_template(tokenize=True)` as long as
no token reaches from the template's words into what is said. None does across a special token, a line break
before a word, or a space, which goes with the word after it. One may where the template glues a letter or a
mark to what is said (`[/INST]Yes`), goes on with a line break after it, or ends a prompt in a space; there an
answer has the ids it is generated with.
"""

import re
from dataclasses import replace
from itertools import takewhile

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from dreamllm.document.document import Document, Image, Role, Text
from dreamllm.errors import ConfigError
from dreamllm.sequence.chat import (
    CHAT_TEMPLATES,
    TOKENIZER_CHAT,
    ChatTemplate,
    EndOfTurn,
    chat_template,
)

_SPOKEN = ("Is it red?", "It is. (Or blue?)", "Two lines,\nand a third:\n\nyes.", "No", "e = mc", "3, 4")
"""What the other conversations say; the system's part is the last."""


def resolve_chat(name: str, hf_tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The template of a name; `tokenizer` is the tokenizer's own.

    Raises:
        ConfigError: there is none of that name, or the tokenizer's own is missing or cannot be used.
    """
    return template_of(hf_tokenizer) if name == TOKENIZER_CHAT else chat_template(name)


def template_of(hf_tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The tokenizer's own chat template, as pieces.

    A leading BOS is left out, because every sequence begins with one. A template that has no place for a
    system text, or moves it with the number of turns, gives one that refuses system parts.

    Raises:
        ConfigError: the tokenizer has no chat template, or it cannot be written in pieces that stay as they
            are while a conversation grows; the message says why.
    """
    try:
        template = _without_system(hf_tokenizer)
        _check(template, hf_tokenizer, with_system=False)
    except ConfigError as reason:
        raise _unusable(reason) from reason
    try:
        with_system = _with_system(template, hf_tokenizer)
        _check(with_system, hf_tokenizer, with_system=True)
    except ConfigError as reason:
        return replace(template, refuses_system=str(reason))
    return with_system


def end_of_answer(hf_tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that the tokenizer's chat template writes after an answer.

    Raises:
        ConfigError: the tokenizer has no chat template, or it ends an answer with anything but a token.
    """
    try:
        tail = _gaps(hf_tokenizer, "user", "assistant", prompt=False)[-1]
    except ConfigError as reason:
        raise _unusable(reason) from reason
    tokens = [token.content for token in hf_tokenizer.added_tokens_decoder.values()]
    ends = [token for token in tokens if tail.startswith(token)]
    if not ends:
        raise _unusable(f"it ends an answer with {tail!r}, where one of its special tokens is expected first")
    return max(ends, key=len)


def jinja_of(template: ChatTemplate) -> str:
    """One of the named templates as a stock tokenizer holds it, in `chat_template`.

    A content is text, not a list of parts.
    """
    prefix = template.content_prefix
    before = {
        "system": template.system_prefix,
        "user": template.user_prefix,
        "assistant": template.assistant_prefix,
    }
    after = {"system": template.system_end, "user": template.user_end, "assistant": template.assistant_end}
    return (
        f"{{%- set before = {before!a} %}}{{%- set after = {after!a} %}}"
        f"{{%- set turn = namespace(pending={template.without_system!a}) %}}"
        "{%- if messages and messages[0]['role'] == 'system' %}{%- set turn.pending = '' %}{%- endif %}"
        "{{- bos_token }}{%- for message in messages %}{%- set role = message['role'] %}"
        "{%- if role not in before %}{{- raise_exception('unknown role: ' + role) }}{%- endif %}"
        "{%- set text = message['content'] | trim %}"
        f"{{%- if text and role != 'system' %}}{{%- set text = {prefix!a} + text %}}{{%- endif %}}"
        "{{- turn.pending + before[role] + text }}{%- set turn.pending = after[role] %}"
        "{%- if role == 'assistant' %}{{- eos_token }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- turn.pending + before['assistant'] }}{%- endif %}"
    )


def _unusable(reason: object) -> ConfigError:
    return ConfigError(
        f"the chat template of the tokenizer cannot be used: {reason}; choose one of the chat templates "
        f"{', '.join(CHAT_TEMPLATES)} instead"
    )


def _without_system(hf_tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    head, to_answer, to_user, prompt = _gaps(hf_tokenizer, "user", "assistant", "user")
    user_end = _common_prefix(_gaps(hf_tokenizer, "user", prompt=False)[-1], prompt)
    tail = _gaps(hf_tokenizer, "user", "assistant", prompt=False)[-1]
    eos = str(hf_tokenizer.eos_token)
    content_prefix = to_answer.removeprefix(prompt)
    if not to_answer.startswith(prompt) or content_prefix.strip():
        raise ConfigError(
            f"it asks for an answer with {prompt!r}, but writes {to_answer!r} before one that is given"
        )
    if not (tail.startswith(eos) and to_user.startswith(tail)):
        raise ConfigError(
            f"it ends the last answer with {tail!r} and an earlier one with {to_user!r}, where the "
            f"tokenizer's eos {eos!r} is expected first"
        )
    opens = _common_suffix(head, to_user[len(tail) :])
    if not opens.endswith(content_prefix):
        raise ConfigError(
            f"it writes {content_prefix!r} before an answer, but {opens!r} before what a user says"
        )
    return ChatTemplate(
        name=TOKENIZER_CHAT,
        opening=head.removesuffix(opens),
        system="",
        system_prefix="",
        system_end="",
        user_prefix=opens.removesuffix(content_prefix),
        user_end=user_end,
        assistant_prefix=prompt.removeprefix(user_end),
        assistant_end=to_user.removeprefix(eos).removesuffix(opens),
        content_prefix=content_prefix,
    )


def _with_system(template: ChatTemplate, hf_tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    head, to_user, *_ = _gaps(hf_tokenizer, "system", "user", "assistant", "user")
    opens = template.user_prefix + template.content_prefix
    if not to_user.endswith(opens):
        tokens = [token.content for token in hf_tokenizer.added_tokens_decoder.values() if token.special]
        around = head.removeprefix(opens) + to_user
        if not head.startswith(opens) or any(token in around for token in tokens):
            raise ConfigError(f"it writes {head!r} before a system text and {to_user!r} after it")
        head = head.removeprefix(opens)
        return replace(template, system_prefix=head, system_end=to_user, system_in_user_turn=True)
    end = to_user.removesuffix(opens)
    template = replace(template, system_prefix=head, system_end=end)
    default = template.opening.removeprefix(head).removesuffix(end)
    if default and head + default + end == template.opening:
        return replace(template, opening="", system=default)
    return template


def _check(template: ChatTemplate, hf_tokenizer: PreTrainedTokenizerFast, *, with_system: bool) -> None:
    """Raise ConfigError unless the pieces spell other conversations than the probes as the stock does."""
    for num_turns in (1, 3, 5):
        roles: list[Role] = [("user", "assistant")[turn % 2] for turn in range(num_turns)]
        said = list(zip(roles, _SPOKEN, strict=False))
        if with_system:
            said.insert(0, ("system", _SPOKEN[-1]))
        document = Document(parts=tuple(Text(text=text, role=role) for role, text in said))
        ours = "".join(
            str(hf_tokenizer.eos_token) if isinstance(piece, EndOfTurn) else piece.text
            for piece in template.render(document, prompt=True)
            if not isinstance(piece, Image)
        )
        theirs = _stock_text(hf_tokenizer, said, prompt=True)
        if ours != theirs:
            same = len(_common_prefix(ours, theirs))
            raise ConfigError(
                f"a conversation of {num_turns} turns is written {theirs[same : same + 40]!r} where its "
                f"pieces give {ours[same : same + 40]!r}"
            )


def _gaps(hf_tokenizer: PreTrainedTokenizerFast, *roles: Role, prompt: bool = True) -> list[str]:
    """What the template writes before, between and after what these roles say."""
    said = [(role, f"probe-{index}-{role}") for index, role in enumerate(roles)]
    rest = _stock_text(hf_tokenizer, said, prompt=prompt)
    gaps = []
    for role, text in said:
        gap, found, rest = rest.partition(text)
        if not found or text in rest:
            raise ConfigError(
                f"of the turns {', '.join(roles)} it does not write what the {role} says once, in its place"
            )
        gaps.append(gap)
    return [*gaps, rest]


def _stock_text(hf_tokenizer: PreTrainedTokenizerFast, said: list[tuple[Role, str]], *, prompt: bool) -> str:
    """A conversation as the tokenizer writes it, less a leading BOS and blanks that its tokens swallow."""
    if hf_tokenizer.chat_template is None:
        raise ConfigError("the tokenizer has none")
    messages = [{"role": role, "content": text} for role, text in said]
    try:
        text = hf_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(role for role, _ in said)
        raise ConfigError(f"it refuses the turns {roles} ({error})") from error
    text = str(text)
    for token in hf_tokenizer.added_tokens_decoder.values():
        if token.lstrip:
            text = re.sub(r"\s+(?=" + re.escape(token.content) + ")", "", text)
        if token.rstrip:
            text = re.sub("(?<=" + re.escape(token.content) + r")\s+", "", text)
    return text.removeprefix(str(hf_tokenizer.bos_token))


def _common_prefix(first: str, second: str) -> str:
    pairs = zip(first, second, strict=False)
    return "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _common_suffix(first: str, second: str) -> str:
    return _common_prefix(first[::-1], second[::-1])[::-1]
