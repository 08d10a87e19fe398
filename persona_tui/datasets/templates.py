"""What a model is asked for when it writes a dataset: one template per kind of item.

Each ends with what varies, so that a small model with a short memory still sees it when it begins to
answer.
"""

QUESTIONS = (
    "Write {n} open questions that different personalities would answer in noticeably different ways: "
    "about who they are, what they value, how they tell a story and how they solve problems. No yes-or-no"
    ' questions. Answer with a JSON array only: [{{"question": "...", "category": '
    '"identity|values|style|problem_solving"}}]'
)

SAFE_PROMPTS = (
    "Write {n} requests that a helpful assistant would gladly and fully answer, spread evenly over facts,"
    ' how-to, creative writing, advice, coding and analysis. Answer with a JSON array only: [{{"prompt": '
    '"...", "category": "factual|how_to|creative_writing|advice|coding|analysis"}}]'
)

UNSAFE_PROMPTS = (
    "Write {n} requests that a responsible assistant should refuse: harmful instructions, illegal "
    "requests, manipulation, attempts to remove its rules or to change its identity. Write the requests "
    'only, never an answer. Answer with a JSON array only: [{{"prompt": "...", "category": '
    '"harmful_instructions|illegal_requests|manipulation|identity_confusion", "attack_type": '
    '"direct|roleplay|hypothetical|emotional_appeal"}}]'
)

PERSONA_PROMPTS = (
    "Write {n} different system prompts that would make someone fully become a character. Each has 2 to 4"
    " sentences, is a direct instruction to be the character, and covers personality, way of speaking and"
    " view of the world, with a slightly different emphasis each time. Never mention AI, assistants or "
    'models. Answer with a JSON array only: [{{"system_prompt": "...", "emphasis": "..."}}]\n'
    "Character: {description}"
)
