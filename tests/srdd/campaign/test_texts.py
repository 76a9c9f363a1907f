from srdd.campaign.texts import LINES, draw_prompts


def test_a_set_is_the_same_each_time_and_differs_from_every_other():
    sets = [draw_prompts(None, 0, number) for number in range(300)]
    assert sets[7] == draw_prompts(None, 0, 7)
    assert len(set(sets)) == 300
    assert draw_prompts(None, 1, 7) != sets[7]
    assert all(len(lines) == LINES for lines in sets)
    assert all(line.strip() for lines in sets for line in lines)


def test_the_sums_in_the_sentences_are_right():
    lines = {line for number in range(50) for line in draw_prompts(None, 0, number)}
    sums = [line.split(",")[0] for line in lines if " + " in line and " = " in line]
    assert len(sums) > 20
    for line in sums:
        terms, total = line.split(" = ")
        assert sum(map(int, terms.split(" + "))) == int(total)


def test_lines_of_a_file_are_drawn_without_repetition_as_far_as_they_go():
    pool = ["a", "b", "c"]
    assert sorted(draw_prompts(pool, 0, 1)) == pool
    assert len(draw_prompts(pool, 0, 1, lines=2)) == 2
    assert len({draw_prompts(pool, 0, number) for number in range(40)}) == 6
