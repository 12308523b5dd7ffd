# ruff: noqa: RUF001 - several scripts
import threading

import pytest

from sigma.data.quality import language
from sigma.data.quality.language import known_languages, language_of

TEXTS = {
    "en": "The committee met on Tuesday to talk about the new bridge, which is to be ready before the end of summer.",
    "fr": "Le comité s'est réuni mardi pour parler du nouveau pont, qui doit être achevé avant la fin de l'été.",
    "de": "Der Ausschuss traf sich am Dienstag, um über die neue Brücke zu sprechen, die im Sommer fertig sein soll.",
    "zh": "委员会星期二开会讨论新桥的问题，这座桥应该在夏天结束之前完工。市长说，工程的费用比原来的计划高得多。",
    "ru": "Комитет собрался во вторник, чтобы обсудить новый мост, который должен быть закончен до конца лета.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_language_is_detected(code):
    assert language_of(TEXTS[code]) == code


def test_the_bundled_prose_is_english(prose):
    found = [language_of(record.text) for record in prose[::8]]
    assert found.count("en") >= 0.99 * len(found)


def test_plain_english_does_not_need_the_model(prose, monkeypatch):
    def no_model():
        raise AssertionError("the model was asked")

    monkeypatch.setattr(language, "_identifier", no_model)
    assert {language_of(record.text) for record in prose[:20]} == {"en"}


@pytest.mark.parametrize("code", ["fr", "de", "zh", "ru"])
def test_words_of_english_in_another_language_do_not_make_it_english(code):
    assert language_of(f"This is a page with cookies. {TEXTS[code] * 30} Terms of use and privacy for all.") == code


def test_the_middle_of_a_text_decides():
    assert language_of(TEXTS["en"] + TEXTS["fr"] * 20 + TEXTS["en"]) == "fr"


@pytest.mark.parametrize("text", ["", "12345 67890", "\x00\x01"], ids=["empty", "digits", "controls"])
def test_what_is_no_language_is_not_called_english(text):
    assert language_of(text) != "en"


def test_threads_get_the_answers_of_one_thread():
    found: dict[str, list[str]] = {}
    texts = [*TEXTS.values()] * 20

    def run(name):
        found[name] = [language_of(text) for text in texts]

    threads = [threading.Thread(target=run, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers == [*TEXTS] * 20 for answers in found.values())
    assert len(found) == 4


def test_codes_are_known():
    assert set(TEXTS) <= known_languages()
    assert language.UNKNOWN not in known_languages()
