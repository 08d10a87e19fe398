"""Traits: directions from contrasted conversations, that replies are measured (and steered) with.

| module | job |
| --- | --- |
| `definition` | `TraitDefinition`: what a trait is, and the conversations that show both of its sides |
| `extract` | `PersonaVectorExtractor`: from a definition to vectors, layer and threshold |
| `vector` | `TraitVector`, one extracted trait, and `TraitStore`, the folder of a model's traits |
| `score` | `TraitScorer`: what every reply of a conversation scores, one pass per conversation |
| `policy` | `Policy`: minimum and maximum per trait, and the breaches of it |
| `live` | `LiveTraits`: scores and breaches of a reply while it is written, without a pass of their own |
| `thresholds` | thresholds from labelled conversations |
| `curate` | flags lines of training data of any size, in constant memory |
| `compare` | two sets of scores: means, intervals, effect sizes, a paired test |
| `health` | where scores become a verdict: a trait's gate and its healthy range |

Scores are on one scale for every trait, layer and model: +1 is where the high examples of extraction lie on
average, −1 where the low ones do, 0 is the middle between them. `projection` is the plain number behind it,
the dot product of the reply's mean activation with the trait's unit vector.
"""
