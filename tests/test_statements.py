"""What statements say about right answers: several of them, letters in any case, tolerances, and what only sounds like that.

Each sentence stands once in the section on the output of a statement and once alone.
"""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.worlds.programs.problem import Answers, Excluded, same_answer
from leafe.worlds.programs.statement import NO_FIGURE, SEVERAL, answers_of

SEVERAL_ANSWERS = [
    "If there are several answers, you should print any of them.",
    "If there are multiple possible arrays, print any of them.",
    "If multiple answers are possible, output any.",
    "If there are many answers, you may print any.",
    "Any answer satisfying the conditions is accepted.",
    "If several solutions are possible, print any of them.",
    "In case of multiple solutions, you can output any.",
    "If there is more than one such number, print any.",
    "If there are a lot of such permutations, print any of them.",
    "If there are multiple choices, print any.",
    "If there are two or more solutions, print any one of them.",
    "When there are multiple correct answers, print any one.",
    "It can be proved that an answer exists. If there are several, output any.",
    "Print -1 if there is no such permutation. Otherwise print any such permutation.",
    "Your program may output any of the valid solutions.",
    "If there exist multiple valid colorings, print any of them.",
    "You are free to print any valid solution.",
    "If there are multiple ways of doing so, output any one.",
    "You can print the required pairs in any order.",
    "You may output the strings in any order you like.",
    "The sets may be printed in any order.",
    "Output the indices of the chosen elements (in any order).",
    "The order in which you print them doesn't matter.",
    "Output one possible sequence.",
    "Print an example of such a sequence.",
    "Output any sequence of moves.",
    "If there are multiple solutions with the minimum cost, print any one of them.",
    "Among all such strings print any.",
    "If there are many such graphs, print whichever.",
    "You can choose which one to print.",
    "If there are several optimal solutions, it doesn't matter which one you print.",
    "Print any possible solution.",
    "If a solution exists print it; if several exist, print any one of them.",
    "Solutions are not unique; any will do.",
    "If there's more than one optimal answer, your program should print any of them.",
    "If there are different possible orders with a correct answer, print any of them.",
    "If there are multiple feasible answers, print any.",
    "If several paths exist print one.",
    "Print some valid arrangement.",
    "If the answer isn't unique, you can print any of them.",
    "If there is no answer, print a single integer -1. Otherwise print the edges in any order.",
    "If there are multiple optimal solutions, print any of them.",
    "If there are several solutions, output any of them.",
    "If there are multiple answers, you can print any of them.",
    "If there are many possible answers, print any.",
    "If there are several suitable permutations, you are allowed to print any of them.",
    "If there are several suitable matrices, it is allowed to print any of them.",
    "If there are several partitions, Petya will be satisfied by any of them.",
    "Print the elements in any order.",
    "You can output the vertices in arbitrary order.",
    "Print n integers, the edges in any order.",
    "The order of the edges does not matter.",
    "If there are multiple solutions, print one of them.",
    "If there is more than one solution, output one of them.",
    "If more than one answer exists, print whichever you like.",
    "If the answer is not unique, print any.",
    "If there are multiple such sequences, print an arbitrary one.",
    "Any valid answer will be accepted.",
    "All correct answers will be accepted.",
    "If there are multiple valid answers, you may choose one.",
    "If several answers exist, it suffices to print one.",
    "If there are multiple solutions, any one of them is accepted.",
    "If there are several ways to do it, print any of them.",
    "Find any such array.",
    "Print any valid permutation.",
    "Print any suitable string.",
    "If there is a solution, output one such sequence.",
    "If there are multiple strings satisfying the condition, print any of them.",
    "If multiple solutions exist, print any of them.",
    "In case of multiple answers, print any of them.",
    "In case there are several optimal answers, output any one.",
    "It is possible that there are several answers. In this case print any of them.",
    "If there are several possible paths, any of them will do, so print one of them.",
    "Note that the answer may be not unique; print one of the possible answers.",
    "If there are different ways to get the minimum, you may output any of them.",
    "If there are multiple plans with the minimum number of moves, print any of them.",
    "If there exist several such pairs, print any.",
    "If there are several sequences of the minimum length, you can print any of them.",
    "There may be several correct answers; it is enough to output one.",
    "You may print any of the possible answers.",
    "If there are multiple ways, the checker accepts each of them.",
    "If there are several optimal assignments, you may report any.",
    "Each of the possible solutions is considered correct.",
    "If first wins, print any winning first move.",
    "The solution may not be unique, output one.",
]
ONE_ANSWER = [
    "If several people have the same score, print the one who registered first.",
    "If there are multiple ways to reach the minimum, the answer is the same.",
    "In one move you can choose any element and increase it by one.",
    "It is allowed to swap any two adjacent elements any number of times.",
    "Print the number of sequences modulo 10^9+7.",
    "If there are multiple such indices, print the leftmost.",
    "For each query print YES or NO.",
    "Print the minimal possible sum.",
    "Two solutions are different if some city is in one of them only.",
    "Your task is to find the number of ways; two ways are the same if one is obtained by any rotation.",
    "If there are several strings with the same length, output the lexicographically smallest of them.",
    "Output the list in alphabetical order.",
    "If there are several equal maximum values, print their number.",
    "Print the answer to each of them on a separate line.",
    "Each query can be answered in any way, print the total.",
    "Print the maximum length. If there are several substrings of such length, print their count.",
    "The tree can be traversed in any order. Print the minimum time.",
    "Print the expected value.",
    "The guests leave in arbitrary order; print how many may remain.",
    "Choose any set of edges and print the least cost.",
    "Victoria didn't want to marry any of them anyway.",
    "If there are multiple solutions, print the lexicographically smallest one.",
    "If there are several such numbers, print the smallest.",
    "If there are multiple answers, print the minimum one.",
    "If there are several optimal colors, print the color with the minimum number.",
    "Operations can be performed in any order.",
    "Print a single integer, the number of ways.",
    "Print YES if any two of the strings are equal.",
    "If there are infinitely many good lines, print -1.",
    "Print one integer, the answer.",
    "Print the only integer.",
    "Print the maximum possible number of segments.",
    "The graph may contain multiple edges and loops.",
    "If there are multiple test cases, print each answer on its own line.",
    "Output the maximum possible cost if you can choose any vertex as v.",
    "Do not print any extra spaces.",
    "Print the number of different ways modulo 109 + 7.",
    "If there are several winners, print the one whose name comes first.",
    "If it is impossible to reach any city, print -1.",
    "Print the answers in the order of the queries.",
    "Print the elements in increasing order.",
    "Print the minimum number of moves required to reach any position j.",
    "If there are several answers, print all of them in increasing order.",
    "Print the answer for each of the test cases.",
    "Two ways are considered different if there is at least one blogger in the first way, which is not in the second way.",
    "If there are many such k, output the maximum of them.",
    "It is also possible that there are many of them. In such a case, output the smallest one.",
    "Print two integers, the first and the last of them.",
    "Every query asks for one of the cities; print its name.",
    "Print the sum of any two adjacent elements' minima.",
    "For each test case print one line.",
]
ANY_CASE = [
    "You may use uppercase or lowercase letters in the output.",
    "Both Yes and YES are accepted.",
    "Capitalization of the answer doesn't matter.",
    "You can print each letter in any case (upper or lower).",
    "You can print each character in any case (either upper or lower).",
    "You may print every letter in any case you want "
    "(so, for example, the strings yEs, yes, Yes, and YES will all be recognized as positive answer).",
    "Print YES (case insensitive) if it's possible to build t and NO (case insensitive) otherwise.",
    "You can output the answer in any case.",
    "The checker is case-insensitive, so print YES or yes.",
    'Print "YES" or "NO". The case of the letters does not matter.',
    "Letter case is not important in the output.",
    "You can print letters in any register.",
    "Each letter of the output can be printed in upper or lower case.",
    "You may print the answer in either case: both uppercase and lowercase letters are accepted.",
    "Output Yes or No, ignoring case of letters.",
    "The answer is accepted in any letter case.",
    "You can output each letter in arbitrary case.",
    "Print the word in any case.",
    "Upper and lower case letters are both accepted in the answer.",
    "You can print each letter in any case.",
]
ONE_CASE = [
    "In any case print -1.",
    "The string consists of lowercase English letters.",
    "All letters should be upper-case.",
    "The string has both lowercase and uppercase letters; print its length.",
    "Print the name, whose letters are in upper or lower case as in the input.",
    "In any test case print YES or NO.",
    "Strings can have both lowercase and uppercase English letters.",
    "Output the letters in the same case as the input.",
]
TOLERANCES = [
    ("Your answer may be off by 1e-6.", "1e-6", "either"),
    ("Your answer is accepted if it is at most 10^{-6} away from the jury's.", "1e-6", "either"),
    ("The checker will consider it correct if |a - b| / max(1, b) ≤ 10 - 6.", "1e-6", "either"),
    ("It should be printed with an error of no more than 5 * 10^-3.", "5e-3", "either"),
    ("Print one real number with precision not worse than 10^ - 3.", "1e-3", "either"),
    ("The answer is considered to be correct if its absolute or relative error does not exceed 10 - 9.", "1e-9", "either"),
    ("Your answer will be accepted if it differs from the correct one by at most 10^{-6}.", "1e-6", "absolute"),
    ("The answers may differ by at most 10^{-6}.", "1e-6", "absolute"),
    ("Print the answer with precision 1e-4.", "1e-4", "either"),
    ("Print it with an accuracy of at least 10^-5.", "1e-5", "either"),
    ("Output the answer with at least 6 digits after the decimal point.", "1e-6", "either"),
    ("The answer should be accurate to six decimal places.", "1e-6", "either"),
    ("Your answer must be within 1e-6 of the right one.", "1e-6", "either"),
    ("An absolute error of at most 0.0001 is fine.", "1e-4", "absolute"),
    ("The relative error must be less than 1E-9.", "1e-9", "relative"),
    ("Formally, your answer is considered correct if $\\frac{|a-b|}{\\max(1,|b|)} \\le 10^{-7}$.", "1e-7", "either"),
    ("The maximal tolerance is 10⁻⁶.", "1e-6", "either"),
    ("The error should not exceed 10**-3.", "1e-3", "either"),
    ("An error of 10−6 is permitted.", "1e-6", "either"),
    ("Absolute or relative error smaller than 10<sup>-8</sup> is ignored.", "1e-8", "either"),
    ("The output must not contain an error greater than 0.00001.", "1e-5", "either"),
    ("Absolute error should be less than or equal to {10}^{-8}.", "1e-8", "absolute"),
    ("You may print with any number of digits, but the deviation may not be above 0.01.", "1e-2", "either"),
]
NO_TOLERANCE = [
    "Print the answer modulo 109 + 7.",
    "Print the number rounded to 2 decimal places.",
    "Print exactly three digits after the decimal point.",
    "Two ways differ if the sets differ.",
    "Segments are at most 10 - 9 long.",
    "The number has at least 6 digits.",
    "It consists of the digits 4 and 7, at least 2 digits.",
    "Print a number within the limits of a 64-bit integer.",
    "The difference must not exceed 10.",
    "Print 0.5 if both win.",
]


def read(sentence: str, *, alone: bool = False) -> Answers | str:
    """How answers are compared, or why the problem is left out."""
    example = "Examples\n\nInput\n\n1\n\nOutput\n\n2\n\nNote\n\nThere are several ways, print any of them."
    whole = f"A problem.\n\nInput\n\nOne line with n.\n\nOutput\n\nPrint it. {sentence}\n\n{example}\n"
    try:
        return answers_of(sentence if alone else whole)
    except Excluded as reason:
        return str(reason)


@pytest.mark.parametrize("alone", [False, True])
def test_problems_with_several_right_answers_are_left_out_and_others_are_not(alone: bool) -> None:
    # Alone, a sentence about an order may speak of anything.
    missed = [
        one for one in SEVERAL_ANSWERS if not (alone and "order" in one and "any" not in one) and read(one, alone=alone) != SEVERAL
    ]
    others = [*ONE_ANSWER, *ANY_CASE, *ONE_CASE, *(text for text, _, _ in TOLERANCES), *NO_TOLERANCE]
    assert missed == [] and [one for one in others if isinstance(read(one, alone=alone), str)] == []


@pytest.mark.parametrize("alone", [False, True])
def test_letters_may_be_in_any_case_where_the_statement_says_so(alone: bool) -> None:
    others = [*ONE_ANSWER, *ONE_CASE, *NO_TOLERANCE]
    assert [one for one in ANY_CASE if read(one, alone=alone) != Answers(any_case=True)] == []
    assert [one for one in others if read(one, alone=alone) != Answers()] == []


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("sentence", "tolerance", "measure"), TOLERANCES)
def test_a_tolerance_is_read_in_many_words(sentence: str, tolerance: str, measure: str, alone: bool) -> None:
    found = read(sentence, alone=alone)
    assert isinstance(found, Answers) and (found.tolerance, found.measure) == (Decimal(tolerance), measure)


def test_a_tolerance_that_names_no_number_leaves_the_problem_out() -> None:
    assert read("Your answer may have a small absolute or relative error.") == NO_FIGURE
    assert answers_of("A small absolute error is fine. Print any of them.", special_judges=True) == Answers(measure="absolute")


def test_what_examples_and_the_input_say_does_not_count() -> None:
    asked = "Input\n\nLetters may be in upper or lower case, in any order.\n\nOutput\n\nPrint n."
    assert answers_of(f"{asked}\n\nExample\n\nOutput\n\nyEs any of them") == Answers()


LOOSE = Answers(any_case=True)
EITHER, ABSOLUTE, RELATIVE = (Answers(tolerance=Decimal("1e-6"), measure=one) for one in ("either", "absolute", "relative"))


@pytest.mark.parametrize(
    ("expected", "found", "answers", "same"),
    [
        ("YES\nNo", "Yes nO", LOOSE, True),
        ("YES", "Yes", Answers(), False),
        ("YES", "NO", LOOSE, False),
        ("0.123456", "0.123457", EITHER, True),  # the error is the tolerance itself
        ("0.123456", "0.1234571", EITHER, False),
        ("2", "2.0000000001", ABSOLUTE, True),
        ("1e9", "1000000500", EITHER, True),
        ("1e9", "1000000500", ABSOLUTE, False),
        ("1e-9", "2e-9", ABSOLUTE, True),
        ("1e-9", "2e-9", RELATIVE, False),
        ("0", "-0.0", RELATIVE, True),
        ("Case #1: 2.5", "Case #1: 2.5000001", EITHER, True),
        ("Case #1: 2.5", "Case #2: 2.5", EITHER, False),
        ("1 2", "1", EITHER, False),
        ("1", "nan", EITHER, False),
        ("1", "inf", EITHER, False),
        ("1", "1_0", EITHER, False),
        ("1", "1e99999999999", EITHER, False),
        ("1", "1e9999", EITHER, False),
        ("7" * 6000, "7" * 5999 + "8", Answers(), False),
        ("7" * 6000, "7" * 6000, EITHER, True),
        ("+.5", "0.5", EITHER, True),
    ],
)
def test_answers_are_compared_as_the_statement_says(expected: str, found: str, answers: Answers, same: bool) -> None:
    assert same_answer(expected, found, answers) == same


@given(st.floats(-1e9, 1e9), st.floats(-2, 2))
def test_a_number_within_the_tolerance_is_right_and_one_beyond_it_is_not(value: float, share: float) -> None:
    exact = Decimal(value) + Decimal(share) * Decimal("1e-6") * max(Decimal(1), abs(Decimal(value)))
    assert same_answer(format(Decimal(value), "f"), format(exact, "f"), EITHER) == (
        abs(exact - Decimal(value)) <= Decimal("1e-6") * max(Decimal(1), abs(Decimal(value)))
    )


@given(st.text())
def test_any_text_is_a_statement(text: str) -> None:
    assert isinstance(read(text, alone=True), Answers | str)
