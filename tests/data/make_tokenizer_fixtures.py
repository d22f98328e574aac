#!/usr/bin/env python3
"""Makes tests/data/tokenizers: small vocabularies in Hugging Face's format, a text, and the ids' hashes.

    python3 make_tokenizer_fixtures.py TEXT [FOLDER]

TEXT is a text of the public domain, of which single lines end up in the fixtures: Shakespeare's plays, in the file that
char-rnn made known as tinyshakespeare. All else is made up here. Needs `tokenizers` (made with 0.23.3); the same input
and release give the same files.

FOLDER/NAME.json    a tokenizer.json: pre-tokenizer, flags and added tokens as the family NAME has them
FOLDER/text.txt     10,000 lines; some hold a carriage return or characters that Unicode counts as line breaks too
FOLDER/hashes.txt   the names, then one row for every 20 lines: FNV-1a (32 bits) over the ids' bytes, little-endian
"""
import json
import pathlib
import struct
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES, GROUP = 10_000, 20
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PHRASES = """
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία|Съешь же ещё этих мягких булок|עטלף אבק נס דרך|צֵאתְכֶם לְשָׁלוֹם|نص حكيم له سر قاطع|مُدَّ يَدَكَ
ऋषियों को सताने वाले|கண்ணன் வருகிறான்|เป็นมนุษย์สุดประเสริฐ|天地玄黄宇宙洪荒|𠮷野家で牛丼|いろはにほへと ちりぬるを|カタカナ・テスト|다람쥐 헌 쳇바퀴에 타고파
ქართული ენა|Հայերեն լեզու|የአማርኛ ጽሑፍ|Trăm năm trong cõi người ta|İstanbul'da ığdır|Größe STRASSE ẞ ß|ŒUVRE cœur naïve|Žluťoučký kůň|smørrebrød Ærø
crème brûlée|ﬁne ﬂow ǅ ǆ|Ὀδυσσεύς ΣΊΣΥΦΟΣ|ខ្មែរ|မြန်မာ|ᎣᏏᏲ|ⴰⵣⵓⵍ|ᚠᚢᚦ|𝔘𝔫𝔦 𝒞𝑜𝒹𝑒
"""
EMOJI = "🙂|👍🏽|👩‍👩‍👧‍👦|🏳️‍🌈|🇩🇪🇫🇷|1️⃣|❤️|🧑‍🚀|👨🏿‍🦰|☂|♥︎|🦔|🏴󠁧󠁢󠁥󠁮󠁧󠁿|✌🏻✌️|😀😀😀"
CODE = """
for (int i = 0; i < n; ++i) { sum += x[i]; }|  return a && !b ? c : d;|\tif x is None:|def f(x, *args, **kw): return x->y|#include <vector>
std::map<std::string, int> m{{"a", 1}};|SELECT * FROM t WHERE id=42;|<p class="x">&amp;</p>|{"key": [1, 2.5e-3, null, true]}|$ ls -la ~/tmp | grep '\\.txt$'
x = 0xFF_FF; y = 1_000_000|    // comment: ¿qué?|}}}}|a[b[c[d]]]|foo_bar.baz()|camelCaseName HTTPServer2|-----|=====>|\\\\n\\t|@user #tag|https://example.org/a?b=c&d=%20#e
"""
NUMBERS = "0|7|42|123|1234|1234567890|3.14159|1,000,000|2026-11-28|٠١٢٣|०१२३|²³|½|Ⅳ|①②|12:34:56|1st|x2y3|１２３|-5|+1e10|𝟘𝟙"
CONTRACTIONS = "I'm|you're|he's|we've|they'll|she'd|don't|DON'T|I'M|WE'LL|It’s|'tis|rock'n'roll|o'clock|'ſ|'S'T|''s|' s|'re're"
MARKS = "é|ñ|ở|ä̈̈|Å|\u0301a|\u0301|각|q̣̇|q̣̇|ﬁ́|ä|क्षि|́́́ x|이|a\u20dd|x\u20e3|ç̌"
ODD = ("\u00ad|\u200b|a\u200bb|\ufeff|\ufffd|\u2028|\u2029|\u0085|\u00a0|\u00a0\u00a0x|\u3000|\u2003y|\u202f|\u180e|\x01|\x7f|\x1b[0m|\u200f"
       "|\u200d|\ue000|“quote”|‘q’|…|—|–|¿¡|§¶|™®©|€£¥|°C|±×÷|←→|∀x∈ℝ|√2|▁|▁▁|▁a|<0x41>|<0x|_|^`|$5")
SPACES = " |  |   |     |         |\t|\t\t|\t |  \t|\r|\r\r|\r\n|\n|\n\n|\n \n|\v|\f| \r"
ADDED = "<s>|</s>|<unk>|<|endoftext|>|<|begin_of_text|>|<|end_of_text|>|<|im_start|>|[CLS]|[MASK]|[SEP]|[UNK]|[mask]|<pad>|<tool>|Tool|<left>|<right>|<both>"
SPECIALS = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "[CLS]", "[MASK]", "[SEP]",
            "[UNK]", "[mask]", "<pad>", "<tool>", "Tool", "<left>", "<right>", "<both>"]


class Draw:
    """A linear congruential generator: the same numbers everywhere."""

    def __init__(self, seed):
        self.state = seed

    def below(self, count):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % count

    def of(self, items):
        return items[self.below(len(items))]


def pool(text):
    return [part for part in text.strip("\n").replace("\n", "|").split("|") if part]


def make_lines(prose):
    draw = Draw(1)
    pools = [pool(PHRASES), EMOJI.split("|"), pool(CODE)]
    pools += [items.split("|") for items in (NUMBERS, CONTRACTIONS, MARKS, ODD)]
    spaces = SPACES.split("|")
    words = [word for line in prose for word in line.split()]
    lines = []
    while len(lines) < LINES:
        kind = draw.below(10)
        line = ""
        if kind == 0:
            line = draw.of(prose)[:48]
        elif kind == 1:
            line = draw.of(pools[2])
        elif kind == 2:
            line = "".join(draw.of(spaces).replace("\n", "") + draw.of(words + [""]) for _ in range(3)) + draw.of(spaces).replace("\n", "")
        elif kind == 3:
            # white space between words is where rules differ most
            line = draw.of(words) + draw.of(spaces).replace("\n", "") + draw.of(SPECIALS) + draw.of(["", " ", "  ", "\u00a0"]) + draw.of(words)
        elif kind > 4:
            for _ in range(1 + draw.below(3)):
                line += draw.of(draw.of(pools))[: 4 + draw.below(20)] + draw.of(["", "", " ", draw.of(spaces).replace("\n", "")])
            line = line if draw.below(4) else line.upper()[:24]
        lines.append(line + ("\r" if draw.below(12) == 0 else ""))
    return lines


def byte_level(rule, vocabulary, specials, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = rule
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=specials, show_progress=False)
    return tokenizer, trainer


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def alphabet(lines, normalizer, count):
    """Arguments that fix the characters kept, which the trainer would choose among equally frequent ones by chance."""
    counts = {}
    for character in normalizer.normalize_str(" ".join(lines)):
        counts[character] = counts.get(character, 0) + 1
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:count]
    return {"initial_alphabet": kept, "limit_alphabet": len(kept)}


def changed(tokenizer, change):
    data = json.loads(tokenizer.to_str())
    change(data)
    return Tokenizer.from_str(json.dumps(data))


def llama3(lines):
    tokenizer, trainer = byte_level(split(LLAMA3), 1100, [])
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=True),
                          AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("Tool", normalized=True),
                          AddedToken("<tool>", normalized=False)])
    begin = [("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))]
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
                                             special_tokens=begin)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])

    def change(data):
        # tokens that no merge makes are what ignore_merges is for
        data["model"]["ignore_merges"] = True
        data["model"]["merges"] = [pair for i, pair in enumerate(data["model"]["merges"]) if i % 5]

    return changed(tokenizer, change)


def smollm(lines):
    rule = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer, trainer = byte_level(rule, 1000, ["<|endoftext|>", "<|im_start|>"])
    tokenizer.train_from_iterator(lines, trainer)

    def change(data):
        # a byte that no token stands for is left out
        vocabulary = data["model"]["vocab"]
        last = max(vocabulary, key=vocabulary.get)
        vocabulary[last] = vocabulary.pop("\u0101")
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    return changed(tokenizer, change)


def qwen2(lines):
    tokenizer, trainer = byte_level(split(QWEN2), 900, [], normalizers.NFC())
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    tokenizer.add_tokens([AddedToken("A\u030a", normalized=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def roberta(lines):
    tokenizer, trainer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), 600, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_tokens([AddedToken("[MASK]", lstrip=True, normalized=False)])
    return tokenizer


def llama2(lines):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=specials, show_progress=False,
                                  **alphabet(lines, normalizers.Replace(" ", "▁"), 150))
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    begin = [("<s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=begin)

    def change(data):
        data["pre_tokenizer"] = None
        data["added_tokens"] = data["added_tokens"][:3]
        data["added_tokens"][2]["normalized"] = True

    return changed(tokenizer, change)


def most_frequent(items, count):
    counts = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return sorted(counts, key=lambda item: (-counts[item], item))[:count]


def bert(lines):
    # not trained: the trainer numbers its characters by chance
    normalizer, rule = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = [word for line in lines for word, _ in rule.pre_tokenize_str(normalizer.normalize_str(line))]
    characters = most_frequent("".join(words), 300)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + characters + ["##" + character for character in characters[:200]]
    tokens += most_frequent([word for word in words if len(word) > 1], 300)
    tokens += most_frequent([word[:2] for word in words], 100)
    tokens += most_frequent(["##" + word[-n:] for word in words for n in (2, 3) if len(word) > n], 250)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=16))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, rule, decoders.WordPiece()
    tokenizer.add_special_tokens(tokens[:5])
    around = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                             special_tokens=around)
    return tokenizer


def fnv(ids):
    value = 0x811C9DC5
    for byte in struct.pack(f"<{len(ids)}i", *ids):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def main():
    source = pathlib.Path(sys.argv[1]).read_text()
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).parent / "tokenizers"
    folder.mkdir(exist_ok=True)
    lines = make_lines([line for line in source.split("\n") if line][:4000])
    text = "".join(line + "\n" for line in lines)
    assert text.count("\n") == LINES
    (folder / "text.txt").write_bytes(text.encode())
    groups = ["".join(line + "\n" for line in lines[i:i + GROUP]) for i in range(0, LINES, GROUP)]
    columns = {}
    for make in (llama3, smollm, qwen2, roberta, llama2, bert):
        tokenizer = make(groups[:100] + [source[:300_000]])
        data = json.loads(tokenizer.to_str())
        (folder / f"{make.__name__}.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
        columns[make.__name__] = [fnv(tokenizer.encode(group, add_special_tokens=False).ids) for group in groups]
    rows = [" ".join(columns)] + [" ".join(f"{column[i]:08x}" for column in columns.values()) for i in range(len(groups))]
    (folder / "hashes.txt").write_text("\n".join(rows) + "\n")


main()
