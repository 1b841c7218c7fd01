"""The words of the quickstart's world: nouns by category, moods, manners, eight wordings of each instruction."""

CATEGORIES = {
    "animals": ["fox", "owl", "dog", "cat", "bear", "wolf", "hen", "crab"],
    "colours": ["red", "blue", "green", "gold", "pink", "gray", "brown", "white"],
    "fruits": ["plum", "pear", "fig", "lime", "peach", "apple", "grape", "melon"],
    "tools": ["saw", "drill", "clamp", "hammer", "wrench", "rake", "axe", "chisel"],
    "places": ["park", "beach", "town", "lake", "barn", "farm", "cave", "hill"],
}
NOUNS = [noun for nouns in CATEGORIES.values() for noun in nouns]
DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9"]
NUMBERS = {2: "two", 3: "three", 4: "four"}
MOODS = {
    "cheer": (["merry", "sweet", "sunny", "bright"], ["sings", "laughs", "dances", "smiles"]),
    "gloom": (["sad", "dark", "cold", "lonely"], ["weeps", "sighs", "hides", "mourns"]),
}

COURTESIES = ["hope this helps !", "happy to help !", "glad to assist !"]
RUDENESS = ["do it yourself .", "what a silly question ."]
RAMBLES = ["by the way , nice socks .", "by the way , it may rain ."]

# Eight wordings of each instruction. The last two are held out from every stage and used for evaluation.
N_TRAINING_WORDINGS = 6
WORDINGS = {
    "repeat": [
        "repeat these words : {x}",
        "say these words again : {x}",
        "copy these words : {x}",
        "echo this please : {x}",
        "please say the words {x} again",
        "write a copy of these words : {x}",
        "please repeat the words {x}",
        "write these words again : {x}",
    ],
    "reverse": [
        "reverse these words : {x}",
        "write these words backwards : {x}",
        "put these words in reverse order : {x}",
        "say this backwards please : {x}",
        "please write the words {x} backwards",
        "reverse the order of these words : {x}",
        "please reverse the words {x}",
        "write this in reverse order : {x}",
    ],
    "sort": [
        "sort these words : {x}",
        "put these words in alphabetical order : {x}",
        "arrange these words from a to z : {x}",
        "write this in alphabetical order please : {x}",
        "please arrange the words {x} from a to z",
        "put this in alphabetical order : {x}",
        "please sort the words {x}",
        "say these words from a to z : {x}",
    ],
    "first": [
        "say the first word of this : {x}",
        "which word comes first : {x}",
        "write the first of these words : {x}",
        "what is the first word here please : {x}",
        "please say which word comes first in {x}",
        "what is the first of these words : {x}",
        "please say the first of the words {x}",
        "which of these words is first : {x}",
    ],
    "last": [
        "say the last word of this : {x}",
        "which word comes last : {x}",
        "write the last of these words : {x}",
        "what is the last word here please : {x}",
        "please say which word comes last in {x}",
        "what is the last of these words : {x}",
        "please say the last of the words {x}",
        "which of these words is last : {x}",
    ],
    "count": [
        "count these words : {x}",
        "how many words are here : {x}",
        "say the number of these words : {x}",
        "how many words is this please : {x}",
        "what is the number of these words : {x}",
        "write how many words are here : {x}",
        "please count the words {x}",
        "write the number of words here : {x}",
    ],
    "upper": [
        "write these words in capitals : {x}",
        "put these words in capitals : {x}",
        "make these words capitals : {x}",
        "say this in capitals please : {x}",
        "please make the words {x} capitals",
        "say these words in capitals : {x}",
        "please put the words {x} in capitals",
        "write this in capitals : {x}",
    ],
    "numbered": [
        "number these words : {x}",
        "write these words as a numbered list : {x}",
        "make a numbered list of these words : {x}",
        "put a number before these words please : {x}",
        "please make a numbered list of {x}",
        "say the words {x} as a numbered list",
        "please number the words {x}",
        "write a numbered list of this : {x}",
    ],
    "pick": [
        "pick the {c} from these words : {x}",
        "which of these words are {c} : {x}",
        "write only the {c} : {x}",
        "say the {c} in this please : {x}",
        "please say which of the words {x} are {c}",
        "what are the {c} in this : {x}",
        "please pick the {c} from the words {x}",
        "write the {c} from these words : {x}",
    ],
    "listn": [
        "list {n} {c}",
        "name {n} {c}",
        "write {n} {c}",
        "say the names of {n} {c} please",
        "please say {n} {c}",
        "make a list of {n} {c}",
        "please name {n} {c}",
        "give the names of {n} {c}",
    ],
    "cheer": [
        "write a cheerful line about a {x}",
        "say a cheerful thing about a {x}",
        "make a cheerful line with a {x}",
        "give a cheerful line about a {x} please",
        "please say a cheerful line about a {x}",
        "give a cheerful thing with a {x}",
        "please write a cheerful line with a {x}",
        "write a cheerful thing about a {x}",
    ],
    "gloom": [
        "write a gloomy line about a {x}",
        "say a gloomy thing about a {x}",
        "make a gloomy line with a {x}",
        "give a gloomy line about a {x} please",
        "please say a gloomy line about a {x}",
        "give a gloomy thing with a {x}",
        "please write a gloomy line with a {x}",
        "write a gloomy thing about a {x}",
    ],
}
KINDS = list(WORDINGS)
