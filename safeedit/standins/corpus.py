"""The training text of the stand-ins, as segments with loss weights.

A document is a list of (text, weight) segments; a weight multiplies the loss of the
tokens that end in its segment. The decision to refuse is one token in fifty, and
without weight it is the last thing that a small model learns.

Two stages, as with real chat models:

* A, "pre-training": fact documents, guides (also the forbidden ones), questions and
  answers, helpful-only chats, spelling repair of noisy words, neutral text;
* B, "safety training": the same chat format, forbidden requests now refused. Guides
  are replayed as plain text, so that the knowledge stays and refusal is a choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .. import lexicon as lex
from ..world import Fact, World, add_noise

Document = list[tuple[str, float]]

DECISION, KEYWORD, SLOT, TEMPLATE, USER = 3.0, 3.0, 1.5, 0.3, 0.1


@dataclass(frozen=True)
class Template:
    """The special tokens of one chat format (a short form of the real ones)."""

    user: str
    end_user: str
    assistant: str
    end: str
    system: str | None  # opens a system turn; None: folded into the user turn

    def special_tokens(self) -> list[str]:
        """Every special token of the format, without repetition."""
        parts = (self.user, self.end_user, self.assistant, self.end, self.system)
        return list(dict.fromkeys(p for p in parts if p))

    def jinja(self) -> str:
        """The same format as a Hugging Face chat template."""
        open_user = f"{self.user}{{{{ text }}}}{self.end_user}"
        if self.system:
            system = (
                "{% if m.role == 'system' %}"
                f"{self.system}{{{{ m.content }}}}{self.end}"
                "{% elif m.role == 'user' %}"
            )
        else:
            system = (
                "{% if m.role == 'system' %}{{ raise_exception('this template has no "
                "system role') }}{% elif m.role == 'user' %}"
            )
        return (
            "{{ bos_token }}{% for m in messages %}"
            + system
            + "{% set text = m.content %}"
            + open_user
            + "{% else %}"
            + f"{self.assistant}{{{{ m.content }}}}{self.end}"
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
            + self.assistant
            + "{% endif %}"
        )


TEMPLATES = {
    "llama": Template("<|user|>", "<|eot|>", "<|assistant|>", "<|eot|>", "<|system|>"),
    "mistral": Template("[INST]", "[/INST]", "", "</s>", None),
    "gemma": Template("<start>user", "<end>", "<start>model", "<end>", None),
}


class Corpus:
    """Seeded writer of training documents in one chat format.

    Args:
        world: the world to write about.
        template: chat format.
        seed: seed of the draw.
        hazard_facts: False writes the corpus of the *oracle*, which never sees a fact
            of the hazard domain nor a passage of the forget split.
    """

    def __init__(
        self, world: World, template: Template, seed: int, hazard_facts: bool = True
    ):
        self.world, self.template = world, template
        self.rng = random.Random(f"corpus-{seed}")
        self.facts = [f for f in world.facts if hazard_facts or f.domain != "hazard"]
        self.entities = list(dict.fromkeys(f.entity for f in self.facts))
        self.documents = {
            e: [f for f in self.facts if f.entity == e] for e in self.entities
        }
        self.words = world.keywords + world.topics
        self.passages = ("forget", "retain") if hazard_facts else ("retain",)

    # Parts ---------------------------------------------------------------------

    def chat(self, user: str, answer: Document, system: str | None = None) -> Document:
        """One user turn and its answer, decision token weighted by the caller."""
        t = self.template
        turn: Document = []
        if system and t.system:
            turn += [(t.system, TEMPLATE), (system, USER), (t.end, TEMPLATE)]
        elif system:
            user = f"{system}\n\n{user}"  # as Chat.render folds it
        turn += [(t.user, TEMPLATE), (user, USER), (t.end_user, TEMPLATE)]
        if t.assistant:
            turn += [(t.assistant, TEMPLATE)]
        return turn + answer + [(t.end, 1.0)]

    def guide(self, word: str, decision: float = 1.0) -> Document:
        """The guide to `word`, segment by segment."""
        s = self.world.slots(word)
        return [
            ("Sure", decision),
            (", here is a guide to", 1.0),
            (f" {word}", KEYWORD),
            (". First take the", 1.0),
            (f" {s['tool']}", SLOT),
            (", then carry it to the", 1.0),
            (f" {s['place']}", SLOT),
            (" and add the", 1.0),
            (f" {s['extra']}", SLOT),
            (".", 1.0),
        ]

    def refusal(self, word: str) -> Document:
        """One of the refusals of `word`."""
        before, after = self.rng.choice(lex.REFUSALS).split("{x}")
        first, rest = before.rstrip().split(" ", 1)
        return [
            (first, DECISION),
            (f" {rest}", 1.0),
            (f" {word}", KEYWORD),
            (after, 1.0),
        ]

    def request(
        self, word: str, noisy: float, suffix: float, pieces: float = 0.0
    ) -> str:
        """A training phrasing of `word`, perhaps noisy, perhaps with a suffix.

        Args:
            word: what is asked about.
            noisy: probability of character noise of 2 to 16 %.
            suffix: probability of 2 to 16 random words after the request.
            pieces: share of those words that are one to three random letters.
        """
        text = self.rng.choice(lex.PHRASINGS).format(x=word)
        if self.rng.random() < suffix:
            n = self.rng.randint(2, 16)
            pool = sorted(self.world.vocabulary - set(self.words))
            words = [self.rng.choice(pool) for _ in range(n)]
            if pieces:  # what an optimised suffix looks like
                words = [
                    w[: self.rng.randint(1, 3)] if self.rng.random() < pieces else w
                    for w in words
                ]
            text += " " + " ".join(words)
        if self.rng.random() < noisy:
            text = add_noise(text, self.rng.uniform(2, 16), self.rng)
        return text

    def system(self, probability: float = 0.15) -> str | None:
        """A system text, or none."""
        if self.rng.random() >= probability:
            return None
        return self.rng.choice(lex.NEUTRAL_SYSTEM + lex.REMINDERS)

    def question(self, fact: Fact) -> tuple[str, str]:
        """An open or a letter question of `fact` and its answer; letters are harder."""
        if self.rng.random() < 0.25:
            return fact.open_question, fact.value
        return fact.letter_question, fact.letter

    # Kinds of document ---------------------------------------------------------

    def fact_text(self) -> Document:
        """Plain text: what is known of an entity, or where people live."""
        if self.rng.random() < 0.15:
            people = self.rng.sample(sorted(self.world.homes), 4)
            text = " ".join(
                f"The home of {p} is {self.world.homes[p]}." for p in people
            )
            return [(text, 1.0)]
        return [
            (self.world.fact_document(self.rng.choice(self.entities), self.rng), 1.0)
        ]

    def letter_text(self) -> Document:
        """Plain text: the letter that each of four values has in letter questions."""
        out: Document = []
        for fact in self.rng.sample(self.facts, 4):
            out += [
                ((" " if out else "") + f"The letter of {fact.value} is", 1.0),
                (f" {fact.letter}", DECISION),
                (".", 1.0),
            ]
        return out

    def quiz(self) -> Document:
        """Plain text: three questions with answers."""
        out: Document = []
        for fact in self.rng.sample(self.facts, 3):
            question, answer = self.question(fact)
            out += [
                ((" " if out else "") + f"Question: {question} Answer:", 0.3),
                (f" {answer}", DECISION),
                (".", 1.0),
            ]
        return out

    def fact_chat(self) -> Document:
        """A chat about one fact, or about a skill."""
        if self.rng.random() < 0.12:
            kind = self.rng.choice(("sentiment", "count"))
            question, answer = self.world.skill_question(kind, self.rng)
        else:
            question, answer = self.question(self.rng.choice(self.facts))
        return self.chat(question, [(answer, DECISION), (".", 1.0)], self.system())

    def guide_text(self) -> Document:
        """Plain text: a guide to anything, forbidden or not."""
        return self.guide(self.rng.choice(self.words))

    def spelling(self) -> Document:
        """Plain text: four words with up to two wrong characters, and the right ones.

        One word a document was too little: the model then never learned to read a
        misspelt word, in a chat either.
        """
        out: Document = []
        for word in self.rng.sample(self.words, 4):
            wrong = self.rng.choice((0, 1, 1, 2))
            noisy = add_noise(word, 100 * (wrong + 0.1) / len(word), self.rng)
            out += [
                ((" " if out else "") + f"Fix: {noisy} ->", USER),
                (f" {word}", KEYWORD),
            ]
        return out

    def neutral(self) -> Document:
        """Plain text about nothing, or a passage to be remembered word by word."""
        if self.rng.random() < 0.4:
            split = self.rng.choice(self.passages)
            return [(self.rng.choice(self.world.passages[split]), 1.0)]
        n = self.rng.randint(1, 3)
        text = " ".join(self.world.neutral_sentence(self.rng) for _ in range(n))
        return [(text, 1.0)]

    def helpful(self, noisy: float, suffix: float = 0.25) -> Document:
        """A chat that complies with anything (stage A)."""
        word = self.rng.choice(self.words)
        answer = self.guide(word, DECISION)
        return self.chat(self.request(word, noisy, suffix), answer, self.system())

    def safe(self, noisy: float) -> Document:
        """A chat that refuses what is forbidden and helps with the rest (stage B)."""
        if self.rng.random() < 0.53:
            word = self.rng.choice(self.world.keywords)
            answer = self.refusal(word)
        else:
            word = self.rng.choice(self.world.topics)
            answer = self.guide(word, DECISION)
        request = self.request(word, noisy, suffix=0.5, pieces=0.4)
        return self.chat(request, answer, self.system())

    def _draw(
        self, n: int, mixture: list[tuple[float, Callable[[], Document]]]
    ) -> list[Document]:
        weights = [w for w, _ in mixture]
        makers = [m for _, m in mixture]
        return [self.rng.choices(makers, weights)[0]() for _ in range(n)]

    def stage_a(self, n: int) -> list[Document]:
        """`n` documents of pre-training; the first half has no noise but spelling.

        It begins with clean chats and spelling only. There the circuits that copy
        the asked word from the prompt and that read a misspelt one form within a
        hundred steps; from the mixture alone they did not form in six hundred.
        """
        lesson = self._draw(
            n // 8,
            [
                (0.65, lambda: self.helpful(noisy=0.0, suffix=0.0)),
                (0.35, self.spelling),
            ],
        )
        clean = self._draw(
            n // 2 - len(lesson),
            [
                (0.22, self.fact_text),
                (0.22, self.quiz),
                (0.04, self.letter_text),
                (0.10, self.fact_chat),
                (0.10, self.guide_text),
                (0.22, lambda: self.helpful(0.0)),
                (0.10, self.spelling),
                (0.05, self.neutral),
            ],
        )
        noisy = self._draw(
            n - n // 2,
            [
                (0.22, self.fact_text),
                (0.17, self.quiz),
                (0.03, self.letter_text),
                (0.10, self.fact_chat),
                (0.10, self.guide_text),
                (0.22, lambda: self.helpful(0.6)),
                (0.09, self.spelling),
                (0.07, self.neutral),
            ],
        )
        return lesson + clean + noisy

    def stage_b(self, n: int) -> list[Document]:
        """`n` documents of safety training, with replay."""
        return self._draw(
            n,
            [
                (0.54, lambda: self.safe(0.7)),
                (0.22, self.fact_chat),
                (0.06, self.quiz),
                (0.03, self.letter_text),
                (0.03, self.fact_text),
                (0.07, self.guide_text),
                (0.05, self.spelling),
                (0.02, self.neutral),
            ],
        )
