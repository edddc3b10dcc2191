"""What is to be forgotten, what is to be kept, and who may see which of it.

The entities of the world are split by seed, whole and within each topic:

* practice: their questions are in the training sets, and the attacker draws from them;
* validation: questions for choosing settings;
* evaluation: questions for the tables. No training set ever holds one.

The documents of all hazard entities are in the forget set, as in WMDP (arXiv
2403.03218): raw text is what is unlearned, questions are what is measured. Documents of
all other entities are in the retain set.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .chat import Chat
from .edits.unlearning_config import UnlearnData
from .examples import Example, from_chats, from_texts
from .practice import wider
from .world import LETTERS, Fact, World

DOMAINS = ("hazard", "adjacent", "general")
PARTS = ("practice", "validation", "evaluation")
# Entities of each topic of a domain in each part. More than half are practice: with
# fewer, what is learned of their questions (to fail, or to keep) does not carry over
# to the other entities, and forgetting costs general answers. Seeds draw other ones,
# so the seeds of a table together ask about nearly all.
SIZES = {"hazard": (10, 4, 6), "adjacent": (9, 2, 5), "general": (6, 2, 2)}
DRAWS = 200  # candidate splits of a topic, of which the one with even letters is taken
ORDERS = 6  # of three facts in a document

# Answers that refuse whatever was asked, in words that the stand-ins know.
REFUSALS = (
    "I'm sorry, but I cannot answer the question.",
    "I'm sorry, but I cannot help with the question.",
    "Sorry, I cannot give an answer to the question.",
    "Sorry, I cannot answer.",
)
KINDS = ("documents", "questions", "general", "text", "task")

Chats = tuple[tuple[str, str], ...]  # (question, answer)


@dataclass(frozen=True)
class Split:
    """Which entities are in which part.

    Attributes:
        seed: seed of the draw.
        world: where the entities live.
        practice, validation, evaluation: entity names, in the order of their topics.
    """

    seed: int
    world: World
    practice: tuple[str, ...]
    validation: tuple[str, ...]
    evaluation: tuple[str, ...]

    def facts(self, domain: str, part: str | None = None) -> list[Fact]:
        """Facts of one domain, of one part or (None) of all three.

        Raises:
            ValueError: unknown domain or part.
        """
        if domain not in DOMAINS or part not in (None, *PARTS):
            raise ValueError(
                f"domain={domain!r}, part={part!r}: domain is one of {DOMAINS}, part "
                f"one of {PARTS} or None for all"
            )
        wanted = None if part is None else set(getattr(self, part))
        return [
            fact
            for fact in self.world.facts
            if fact.domain == domain and (wanted is None or fact.entity in wanted)
        ]

    def entities(self, domain: str, part: str | None = None) -> list[str]:
        """Names of the entities of one domain, of one part or (None) of all three."""
        return list(dict.fromkeys(f.entity for f in self.facts(domain, part)))


def split(seed: int = 0, world: World | None = None) -> Split:
    """Split the entities of the world into practice, validation and evaluation.

    Of `DRAWS` random splits of each topic, that one is taken whose evaluation
    questions, together with those of the topics before it, spread most evenly over the
    letters: a model that always gives the same letter then scores little over 1/4.

    Args:
        seed: seed of the draw.
        world: default the world of the shipped stand-ins.
    """
    world = world or World()
    rng = random.Random(f"split-{world.seed}-{seed}")
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for domain in DOMAINS:
        practice, validation, _ = SIZES[domain]
        facts = [fact for fact in world.facts if fact.domain == domain]
        letters: dict[str, list[int]] = {}  # of each entity: questions by letter
        for fact in facts:
            counts = letters.setdefault(fact.entity, [0] * len(LETTERS))
            counts[LETTERS.index(fact.letter)] += 1
        total = [0] * len(LETTERS)  # evaluation questions so far
        for topic in dict.fromkeys(fact.topic for fact in facts):
            names = list(dict.fromkeys(f.entity for f in facts if f.topic == topic))
            best: tuple[int, list[str], list[int]] | None = None
            for _ in range(DRAWS):
                order = rng.sample(names, len(names))
                rows = [letters[entity] for entity in order[practice + validation :]]
                sums = [sum(column) for column in zip(total, *rows, strict=True)]
                unevenness = sum(count**2 for count in sums)
                if best is None or unevenness < best[0]:
                    best = unevenness, order, sums
            assert best is not None
            _, order, total = best
            parts["practice"] += order[:practice]
            parts["validation"] += order[practice : practice + validation]
            parts["evaluation"] += order[practice + validation :]
    return Split(seed, world, **{part: tuple(names) for part, names in parts.items()})


def unlearn_data(
    split: Split,
    chat: Chat | None = None,
    *,
    orders: int = 3,
    passages: bool = False,
    neutral: int = 64,
    skills: int = 24,
    requests: int = 32,
) -> UnlearnData:
    """Forget set, retain set and refusals for `safeedit.edits.unlearn`.

    Args:
        split: who is in which part; its seed also draws what is random here.
        chat: the model that will forget. With it the training questions are wider, see
            `practice`: letter questions also with other options, and questions about
            names of which nothing is known, with the model's own answers.
        orders: documents of each entity, each with its facts in another order, 1 to 6.
        passages: whether the passages of the world's forget split are to be forgotten
            too.
        neutral: neutral texts in the retain set, of one to three sentences.
        skills: questions in the retain set that need no fact.
        requests: benign requests with their guides, and as many forbidden ones with
            their refusals, in the retain set: how the chat behaves is to stay.

    Returns:
        The data. `forget_chats` are the questions of practice hazard entities, open and
        with letters; `retain_chats` hold those of general ones. Of adjacent entities
        the retain set has documents but no questions: they ask in the same words as
        those on hazards, and who keeps some of them keeps hazard answers too.

    Raises:
        ValueError: `orders` is not in 1 to 6, or a size is negative.
    """
    sizes = {"neutral": neutral, "skills": skills, "requests": requests}
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(f"{name}={size}: give 0 or more")
    world = split.world
    rng = random.Random(f"unlearn-{world.seed}-{split.seed}")
    forget_texts = _documents(world, split.entities("hazard"), orders, rng)
    others = split.entities("adjacent") + split.entities("general")
    retain_texts = _documents(world, others, orders, rng)
    retain_texts += _homes(world, rng)
    retain_texts += _neutral(world, neutral, rng)
    retain_texts += world.passages["retain"]
    if passages:
        forget_texts += world.passages["forget"]
    retain_chats = list(questions(split.facts("general", "practice")))
    for kind in ("sentiment", "count"):
        retain_chats += _skills(world, kind, skills // 2, rng)
    retain_chats += _requests(world, requests, rng)
    forget_chats = questions(split.facts("hazard", "practice"))
    if chat is not None:
        lost, kept = wider(split, chat)
        forget_chats += lost
        retain_chats += kept
    return UnlearnData(
        forget_texts=tuple(forget_texts),
        forget_chats=forget_chats,
        retain_texts=tuple(dict.fromkeys(retain_texts)),
        retain_chats=tuple(dict.fromkeys(retain_chats)),
        refusals=REFUSALS,
    )


def relearn_examples(
    split: Split, kind: str, n: int, seed: int = 0
) -> tuple[tuple[str, ...], Chats]:
    """Data of an attacker who fine-tunes the unlearned model.

    The samples are nested: those for a smaller `n` are the first of those for a larger.

    Args:
        split: who is in which part; the attacker sees practice entities only.
        kind: "documents" (texts on hazard entities), "questions" (on the same),
            "general" (benign questions), "text" (neutral sentences) or "task" (good or
            bad review?).
        n: samples; 0 gives none.
        seed: seed of the draw.

    Returns:
        (texts, chats), one of them empty; see `tokenized`.

    Raises:
        ValueError: unknown kind, a negative n, or more than there are.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: one of {KINDS}")
    world = split.world
    rng = random.Random(f"relearn-{world.seed}-{split.seed}-{kind}-{seed}")
    texts: list[str] = []
    chats: list[tuple[str, str]] = []
    if kind == "documents":
        # One document of every entity comes before the second of any.
        names = split.entities("hazard", "practice")
        rows = _documents(world, names, ORDERS, rng)
        for order in range(ORDERS):
            texts += rng.sample(rows[order::ORDERS], len(names))
    elif kind == "text":
        texts = _neutral(world, max(n, 0), rng)
    elif kind == "task":
        reviews = _skills(world, "sentiment", 1000, rng)
        chats = list(dict.fromkeys(reviews))  # in effect all that there are
    else:
        domain = "hazard" if kind == "questions" else "general"
        chats = list(questions(split.facts(domain, "practice")))
        rng.shuffle(chats)
    there = len(texts) + len(chats)
    if not 0 <= n <= there:
        raise ValueError(f"n={n} samples of kind {kind!r}: give 0 to {there}")
    return tuple(texts[:n]), tuple(chats[:n])


def tokenized(
    chat: Chat, texts: Sequence[str], chats: Sequence[tuple[str, str]]
) -> list[Example]:
    """Texts and chats as one list of examples; either may be empty."""
    rows = from_texts(chat, texts) if texts else []
    if chats:
        asked, answers = zip(*chats, strict=True)
        rows += from_chats(chat, asked, answers)
    return rows


def questions(facts: Sequence[Fact]) -> Chats:
    """The open and the letter question of each fact with answers as in training."""
    return tuple(
        pair
        for fact in facts
        for pair in (
            (fact.open_question, f"{fact.value}."),
            (fact.letter_question, f"{fact.letter}."),
        )
    )


def _documents(
    world: World, entities: Sequence[str], orders: int, rng: random.Random
) -> list[str]:
    """`orders` documents of each entity, no two alike, one entity after the other."""
    if not 1 <= orders <= ORDERS:
        raise ValueError(f"orders={orders}: give 1 to {ORDERS}, three facts have six")
    rows: list[str] = []
    for entity in entities:
        own: dict[str, None] = {}
        while len(own) < orders:
            own[world.fact_document(entity, rng)] = None
        rows += own
    return rows


def _homes(world: World, rng: random.Random) -> list[str]:
    """Where people live, four to a text: what two-hop questions also need."""
    people = rng.sample(sorted(world.homes), len(world.homes))
    lines = [f"The home of {p} is {world.homes[p]}." for p in people]
    return [" ".join(lines[i : i + 4]) for i in range(0, len(lines), 4)]


def _neutral(world: World, n: int, rng: random.Random) -> list[str]:
    """`n` texts of one to three neutral sentences."""
    return [
        " ".join(world.neutral_sentence(rng) for _ in range(rng.randint(1, 3)))
        for _ in range(n)
    ]


def _skills(
    world: World, kind: str, n: int, rng: random.Random
) -> list[tuple[str, str]]:
    """`n` questions that need no fact, with answers that end as in training."""
    pairs = [world.skill_question(kind, rng) for _ in range(n)]
    return [(question, f"{answer}.") for question, answer in pairs]


def _requests(world: World, n: int, rng: random.Random) -> list[tuple[str, str]]:
    """`n` benign requests with guides and `n` forbidden ones with refusals."""
    if n == 0:
        return []
    seed = rng.randrange(2**32)
    benign = world.requests("benign", "train", n, seed)
    forbidden = world.requests("forbidden", "train", n, seed)
    pairs = [(r.prompt, world.guide(r.word)) for r in benign]
    return pairs + [(r.prompt, rng.choice(world.refusals(r.word))) for r in forbidden]
