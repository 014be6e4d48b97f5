from tf_packnet.errors import listed


def test_listed_names_are_distinct_and_at_most_five():
    assert listed([]) == ""
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c, d, e and others"
    assert listed("aabbbcaaade") == "a, b, c, d, e"
    assert listed("abc", most=2) == "a, b and others"
