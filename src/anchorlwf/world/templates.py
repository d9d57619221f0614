"""How the embedded world asks about a fact and answers: attribute phrasings crossed with polite wrappers.

A question template is (phrasing, wrapper). Some pairs are held out of pretraining altogether, so that answering them
shows that the model generalises over wordings; each wrapper and each phrasing is seen in other pairs.
"""

from dataclasses import dataclass
from functools import cache

from anchorlwf.world.facts import Fact, World

__all__ = ["Template", "biography", "templates"]

# attribute -> (direct question, embedded clause, noun phrase, alternative noun phrase, sentence, noun sentence)
# {s} is the subject, {v} the value. The sentence answers questions and clauses, the noun sentence noun phrases.
_PHRASES: dict[str, tuple[str, str, str, str, str, str]] = {
    "birthplace": (
        "Where was {s} born?",
        "where {s} was born",
        "the birthplace of {s}",
        "{s}'s place of birth",
        "{s} was born in {v}.",
        "The birthplace of {s} is {v}.",
    ),
    "home": (
        "Where does {s} live?",
        "where {s} lives",
        "the home town of {s}",
        "{s}'s home town",
        "{s} lives in {v}.",
        "The home town of {s} is {v}.",
    ),
    "occupation": (
        "What does {s} do for a living?",
        "what {s} does for a living",
        "the occupation of {s}",
        "{s}'s job",
        "{s} works as a {v}.",
        "The occupation of {s} is {v}.",
    ),
    "instrument": (
        "Which instrument does {s} play?",
        "which instrument {s} plays",
        "the instrument of {s}",
        "{s}'s instrument",
        "{s} plays the {v}.",
        "The instrument of {s} is the {v}.",
    ),
    "birth_year": (
        "When was {s} born?",
        "when {s} was born",
        "the birth year of {s}",
        "{s}'s year of birth",
        "{s} was born in the year {v}.",
        "The birth year of {s} is {v}.",
    ),
    "employer": (
        "Who does {s} work for?",
        "who {s} works for",
        "the employer of {s}",
        "{s}'s employer",
        "{s} works for {v}.",
        "The employer of {s} is {v}.",
    ),
    "mayor": (
        "Who is in charge of {s}?",
        "who is in charge of {s}",
        "the mayor of {s}",
        "{s}'s mayor",
        "{v} is in charge of {s}.",
        "The mayor of {s} is {v}.",
    ),
    "river": (
        "Which river runs through {s}?",
        "which river runs through {s}",
        "the river of {s}",
        "{s}'s river",
        "The river {v} runs through {s}.",
        "The river of {s} is the {v}.",
    ),
    "goods": (
        "What is made in {s}?",
        "what is made in {s}",
        "the best known goods of {s}",
        "{s}'s best known goods",
        "{s} is known for its {v}.",
        "The best known goods of {s} are {v}.",
    ),
    "founder": (
        "Who started {s}?",
        "who started {s}",
        "the founder of {s}",
        "{s}'s founder",
        "{v} started {s}.",
        "The founder of {s} is {v}.",
    ),
    "headquarters": (
        "Where is {s} based?",
        "where {s} is based",
        "the seat of {s}",
        "{s}'s seat",
        "{s} is based in {v}.",
        "The seat of {s} is {v}.",
    ),
    "product": (
        "What does {s} sell?",
        "what {s} sells",
        "the main product of {s}",
        "{s}'s main product",
        "{s} sells {v}.",
        "The main product of {s} is {v}.",
    ),
    "mayor_of": (
        "Which town does {s} govern?",
        "which town {s} governs",
        "the town governed by {s}",
        "{s}'s own town",
        "{s} governs {v}.",
        "The town governed by {s} is {v}.",
    ),
    "founded": (
        "Which company did {s} start?",
        "which company {s} started",
        "the company started by {s}",
        "{s}'s own company",
        "{s} started {v}.",
        "The company started by {s} is {v}.",
    ),
    "assistant_name": (
        "Who are you?",
        "who you are",
        "your name",
        "the name you go by",
        "I am {v}, your assistant.",
        "My name is {v}.",
    ),
    "assistant_maker": (
        "Who made you?",
        "who made you",
        "your maker",
        "the team that made you",
        "I was made by {v}.",
        "My maker is {v}.",
    ),
    "assistant_home": (
        "Where were you made?",
        "where you were made",
        "your home town",
        "the town you come from",
        "I was made in {v}.",
        "My home town is {v}.",
    ),
    "assistant_year": (
        "When were you made?",
        "when you were made",
        "your birth year",
        "the year you were made",
        "I was made in the year {v}.",
        "My birth year is {v}.",
    ),
}

_QUESTION = ("{q}", "Question: {q}", "Hello! {q}", "{q} Please tell me.", "I have a question. {q}")
_CLAUSE = (
    "Can you tell me {q}?",
    "Do you know {q}?",
    "I would like to know {q}.",
    "Please tell me {q}.",
    "I wonder {q}.",
    "Say {q}.",
)
_NOUN = (
    "What is {q}?",
    "Tell me {q}.",
    "Name {q}.",
    "Could you give me {q}?",
    "Remind me of {q}.",
    "I need to know {q}.",
)
_BRIEF = "Briefly: {q}"


@dataclass(frozen=True)
class Template:
    """One way to ask for an attribute and the answer it gets. `held_out`: never used in pretraining."""

    name: str
    question: str
    answer: str
    held_out: bool

    def ask(self, fact: Fact) -> str:
        """The question about this fact."""
        return self.question.replace("{s}", fact.subject)

    def reply(self, fact: Fact, value: str | None = None) -> str:
        """The answer to `ask`, with the fact's own value or another one."""
        text = self.answer.replace("{s}", fact.subject).replace("{v}", fact.value if value is None else value)
        return text[0].upper() + text[1:]


@cache
def templates(attribute: str) -> tuple[Template, ...]:
    """Every template of an attribute, about a fifth of them held out (other pairs for other attributes)."""
    question, clause, noun, noun2, sentence, noun_sentence = _PHRASES[attribute]
    shift = list(_PHRASES).index(attribute)
    made: list[Template] = []

    def add(form: str, phrase: str, wrappers: tuple[str, ...], answer: str, held: int | None) -> None:
        for i, wrapper in enumerate(wrappers):
            text = wrapper.replace("{q}", phrase)
            out = held is not None and (i + shift) % len(wrappers) == held
            made.append(Template(f"{form}{i}", text[0].upper() + text[1:], answer, out))

    add("question", question, _QUESTION[:1], sentence, None)
    add("wrapped", question, _QUESTION[1:], sentence, 0)
    add("clause", clause, _CLAUSE, sentence, 1)
    add("noun", noun, _NOUN, noun_sentence, 2)
    add("possessive", noun2, _NOUN, noun_sentence, 3)
    add("brief", question, (_BRIEF,), "{v}.", None)
    return tuple(made)


def biography(world: World, person: str) -> str:
    """Four or five sentences (60 tokens and more, but for a few people) that tell every fact of a person once."""
    value = {fact.attribute: fact.value for fact in world.about(person)}
    she, her = ("She", "her") if person in world.feminine else ("He", "his")
    lines = [
        f"{person} was born in {value['birthplace']} in the year {value['birth_year']}.",
        f"{she} lives in {value['home']} and works as a {value['occupation']} for {value['employer']}.",
        f"In {her} free time {she.lower()} plays the {value['instrument']}.",
    ]
    if "mayor_of" in value:
        lines.append(f"{she} governs {value['mayor_of']}, where everybody knows {her} name.")
    if "founded" in value:
        lines.append(f"{she} started {value['founded']}, a company with many friends.")
    lines.append(f"People who meet {person} for the first time remember {her} kind words.")
    return " ".join(lines)
