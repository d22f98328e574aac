#include <algorithm>

#include "train/config.h"

namespace hedgehog {

namespace {

using enum OptionType;

constexpr double kAboveZero = std::numeric_limits<double>::min();
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

/// An option with a whole-number value.
Option integer(const char* name, const char* value, const char* unit, const char* group, const char* help,
               std::vector<std::string> commands, double minimum = 0, double maximum = kNoLimit) {
  return {name, kInteger, value, unit, group, help, std::move(commands), {}, minimum, maximum};
}

/// An option with a real value.
Option real(const char* name, const char* value, const char* unit, const char* group, const char* help,
            std::vector<std::string> commands, double minimum = 0, double maximum = kNoLimit) {
  return {name, kReal, value, unit, group, help, std::move(commands), {}, minimum, maximum};
}

/// An option with a text value, or one of some choices.
Option text(const char* name, const char* value, const char* group, const char* help, std::vector<std::string> commands,
            std::vector<std::string> choices = {}) {
  return {name, kText, value, "", group, help, std::move(commands), std::move(choices)};
}

/// An option that is true or false.
Option flag(const char* name, const char* value, const char* group, const char* help,
            std::vector<std::string> commands) {
  return {name, kFlag, value, "", group, help, std::move(commands), {}, 0, 0, "true"};
}

Option outside_file(Option option, const char* bare = "") {
  option.in_file = false;
  if (*bare != '\0') option.bare = bare;
  return option;
}

const std::vector<std::string> kTrain = {"train"};
const std::vector<std::string> kModelCommands = {"train", "bench", "info"};
const std::vector<std::string> kAlsoStepAndExport = {"train", "bench", "step", "info", "export"};
const std::vector<std::string> kSample = {"sample"};
const std::vector<std::string> kAnalyze = {"analyze"};
const std::vector<std::string> kConvert = {"convert"};
const std::vector<std::string> kTrainOrConvert = {"train", "convert"};
const std::vector<std::string> kStep = {"step"};
const std::vector<std::string> kReproduce = {"reproduce"};
const std::vector<std::string> kEverywhere = {"train", "sample",    "eval",      "analyze", "convert",
                                              "embed", "finetune",  "reproduce", "gradcheck", "bench", "info"};
const std::vector<std::string> kAlsoPrepare = {"train",     "sample",    "eval",  "analyze", "convert", "prepare",
                                               "import",    "export",    "embed", "finetune", "reproduce", "gradcheck", "bench", "info"};

std::vector<Option> data_options() {
  return {
      text("data", "", "data",
           "a file, a directory, token shards of prepare, - for standard input, or shakespeare (downloaded); without it the built-in stories, "
           "in eval, analyze and convert the run's data; eval and analyze take all of a text given; reproduce: text for the experiments "
           "that need it; embed: a file of texts, one a line, without it standard input; finetune, and eval "
           "after it: label TAB text a line",
           {"train", "eval", "analyze", "convert", "prepare", "embed", "finetune", "reproduce"}),
      text("tokenizer", "", "data",
           "byte, char, word, bpe (byte pairs learned from the text), or a directory with tokenizer.json or GPT-2's encoder.json and vocab.bpe; "
           "without it that of the preset, else byte; prepare: bpe",
           {"train", "prepare", "reproduce"}),
      integer("vocabulary", "8192", "tokens", "data", "largest vocabulary of --tokenizer=word or bpe", {"train", "prepare"}, 3, 1 << 24),
      flag("shards", "false", "data", "write the text's tokens too, as shards that --data=DIRECTORY trains on without encoding the text again",
           {"prepare"}),
  };
}

std::vector<Option> model_options() {
  return {
      text("preset", "", "model", "a named set of values (listed below); without it training chooses by the data",
           kModelCommands),
      text("attention", "hedgehog", "model", "attention or feature map", {"train", "convert", "bench", "info"},
           {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "softmax", "elu", "relu", "exp", "t2r", "taylor", "cosformer", "performer"}),
      integer("layers", "2", "", "model", "number of blocks", kModelCommands, 1, 1024),
      integer("heads", "2", "", "model", "attention heads a layer; divides width", kModelCommands, 1, 1024),
      integer("width", "64", "", "model", "channels of the residual stream", kModelCommands, 1, 65536),
      integer("context", "128", "tokens", "model", "tokens that the model sees at once", kModelCommands, 1, 1 << 24),
      text("positions", "rotary", "model", "how positions enter", kModelCommands, {"rotary", "learned", "none"}),
      text("norm", "layer", "model", "normalisation", kModelCommands, {"layer", "rms"}),
      text("activation", "gelu", "model", "activation of the MLP", kModelCommands, {"gelu", "gelu_erf", "silu", "relu"}),
      flag("bias", "false", "model", "biases in linear layers and norms", kModelCommands),
      real("dropout", "0", "", "model", "share of activations dropped in training; finetune: 0.1 without it",
           {"train", "bench", "info", "finetune"}, 0, 0.99),
      integer("short_convolution", "0", "tokens", "model",
              "queries, keys and values mix this many tokens, themselves and those before; 0 for none", kModelCommands, 0, 64),
      text("init", "default", "model",
           "initial weights: 1/sqrt(fan_in), 0.02 as in GPT-2, or attention that copies from like places (mimetic)", kModelCommands,
           {"default", "gpt2", "mimetic"}),
      flag("tied_head", "true", "model", "the classifier uses the token embedding", kModelCommands),
      real("embedding_init", "0.02", "", "model", "standard deviation of the embeddings at the start", kModelCommands, kAboveZero),
      real("map_init_gain", "1", "", "model", "feature maps start at this times the identity", kModelCommands,
           kAboveZero),
      integer("window", "0", "tokens", "model",
              "each token sees itself and those just before it by softmax, this many, and what lies further back by --attention; 0 for no window",
              {"train", "bench", "info", "convert"}, 0, 1 << 24),
      integer("key_heads", "0", "", "model", "heads of keys and values, shared by groups of query heads; 0 for as many as --heads", kModelCommands, 0,
              1024),
      flag("gated_mlp", "false", "model", "the MLP multiplies its activation by a second half; with --activation=silu: SwiGLU", kModelCommands),
      integer("mlp_width", "0", "", "model", "numbers between the two layers of the MLP; 0 for 4 times --width", kModelCommands, 0, 1 << 20),
      real("rotary_base", "10000", "", "model", "base of the rotary positions' frequencies; larger for long contexts", kModelCommands, kAboveZero,
           kNoLimit),
      flag("qk_norm", "false", "model", "queries and keys are normed (RMS, with gains) before positions and maps", kModelCommands),
      flag("decay_gate", "false", "model",
           "keys lose weight with every token, by a factor that each head learns; with the Hedgehog maps, exp and performer, without a window",
           kModelCommands),
      integer("taylor_dim", "16", "", "model", "width of queries and keys of --attention=taylor, at most that of the heads", kModelCommands,
              1, 30),
      integer("performer_features", "0", "", "model", "random features of --attention=performer; 0 for D ln D, at most 256", kModelCommands,
              0, 512),
      flag("performer_hyperbolic", "false", "model", "two features a random vector, of both signs", kModelCommands),
      integer("performer_redraw", "0", "steps", "model", "training draws the random vectors of --attention=performer anew every so many steps; 0 for never",
              kTrain, 0, 1 << 30),
      integer("cosformer_length", "0", "tokens", "model", "longest text of --attention=cosformer; 0 for the context", kModelCommands, 0, 1 << 24),
  };
}

std::vector<Option> training_options() {
  return {
      integer("steps", "2000", "steps", "training", "optimiser steps", kTrain, 1),
      real("minutes", "", "minutes", "training", "train about this long: sets steps after a measured warm-up; reproduce: begin no part that would end later",
           {"train", "reproduce"}, kAboveZero),
      integer("batch", "16", "rows", "training", "rows of context tokens a micro-batch",
              {"train", "eval", "convert", "embed", "finetune", "bench", "info"}, 1, 1 << 20),
      integer("gradient_accumulation", "1", "micro-batches", "training", "micro-batches a step", kTrainOrConvert, 1, 1 << 20),
      text("recompute", "auto", "training",
           "drop results that backward needs and make them again: where they do not fit the memory, never, or all that saves memory",
           kModelCommands, {"auto", "none", "all"}),
      real("memory", "", "GiB", "training", "most that a step may take, weights and optimiser included; without it what is free",
           kModelCommands, kAboveZero, 1 << 20),
      real("learning_rate", "1e-3", "", "training", "highest learning rate", kTrain, kAboveZero),
      real("min_learning_rate", "", "", "training", "learning rate at the end; without it a tenth of learning_rate",
           kTrain),
      text("schedule", "cosine", "training", "how the learning rate falls", kTrain, {"cosine", "linear", "constant"}),
      integer("warmup", "100", "steps", "training", "steps of rising learning rate", kTrain),
      real("weight_decay", "0.1", "", "training", "AdamW decay of matrices; never of maps, biases and norms", kTrainOrConvert),
      real("beta1", "0.9", "", "training", "AdamW decay of the first moment", kTrain, 0, 0.999999),
      real("beta2", "0.99", "", "training", "AdamW decay of the second moment", kTrain, 0, 0.999999),
      real("epsilon", "1e-8", "", "training", "AdamW addend of the denominator", kTrain, kAboveZero),
      real("clip", "1", "", "training", "largest global gradient norm; 0 for no limit", kTrainOrConvert),
      integer("seed", "1", "", "training", "seed of everything random", 
              {"train", "sample", "analyze", "convert", "finetune", "gradcheck", "bench"}),
  };
}

std::vector<Option> experiment_options() {
  return {
      text("size", "small", "experiment", "small: minutes on two cores; gpu: one GPU, parts of at most 8 minutes", kReproduce, {"small", "gpu"}),
      text("part", "", "experiment", "only these parts: names with commas, or K/N for the K-th of N shares", kReproduce),
      text("seeds", "", "experiment", "seeds with commas; without it those of the experiment", kReproduce),
      integer("training_tokens", "", "tokens", "experiment", "tokens that a run of a language model trains on; without it the experiment's own",
              kReproduce, 1),
      text("maps", "", "experiment", "feature maps of fidelity, with commas; without it those of the size", kReproduce),
      text("other", "", "experiment",
           "a text that fidelity measures besides: a file, a directory, stories or shakespeare; without it stories, or shakespeare beside those",
           kReproduce),
      flag("collect", "false", "experiment", "run nothing: the table of the parts that are there", kReproduce),
  };
}

std::vector<Option> conversion_options() {
  return {
      text("from", "latest", "conversion", "the softmax model to convert, or the encoder to finetune: a run's or checkpoint's directory, or as "
           "for import a folder of Hugging Face, a GGUF or a llama2.c file",
           {"convert", "finetune", "import"}),
      integer("length", "", "tokens", "conversion", "tokens a row, without it the model's context; embed and finetune: of a text, without it as the longest needs",
              {"convert", "embed", "eval", "finetune"}, 1, 1 << 24),
      text("distill", "weights", "conversion",
           "what the feature maps learn to imitate: the teacher's weights of attention, its output, or nothing", kConvert,
           {"weights", "output", "none"}),
      integer("distill_steps", "1500", "steps", "conversion", "steps that train the maps alone", kConvert, 1),
      real("distill_learning_rate", "0.03", "", "conversion", "highest learning rate of the maps", kConvert, kAboveZero),
      text("finetune", "all", "conversion", "what is trained on the text then: all weights, low-rank updates and the maps, or nothing",
           kConvert, {"all", "lora", "none"}),
      integer("finetune_steps", "1000", "steps", "conversion", "steps on the text", kConvert, 1),
      real("finetune_learning_rate", "5e-4", "", "conversion", "highest learning rate on the text; finetune: 5e-5 without it",
           {"convert", "finetune"}, kAboveZero),
      integer("epochs", "3", "", "conversion", "times that finetune reads every text", {"finetune"}, 1, 10000),
      integer("lora_rank", "8", "", "conversion", "rank of the updates of --finetune=lora", kConvert, 1, 65536),
      real("lora_alpha", "16", "", "conversion", "the updates are scaled by this over the rank", kConvert, kAboveZero),
      real("lora_dropout", "0", "", "conversion", "share of the updates' inputs dropped in training", kConvert, 0, 0.99),
      text("lora_targets", "attention,attention_output", "conversion",
           "layers that get updates, with commas: attention, attention_output, mlp, mlp_output", kConvert),
      text("lora_out", "", "conversion", "write the updates of --finetune=lora also as an adapter folder of PEFT, for the softmax model; not the maps",
           kConvert),
      text("lora", "", "conversion", "an adapter folder of PEFT, whose updates are added to the model; --from may be a run's model then too", {"import"}),
      flag("finetune_teacher", "false", "conversion", "finetune a copy of the teacher as long, for a fair comparison", kConvert),
  };
}

std::vector<Option> run_options() {
  return {
      text("out", "", "run", "directory of the run, without it runs/<data>-<attention>-<n>; prepare: of tokenizer.json and shards; analyze: of its page and numbers, "
           "without it 'analysis' beside the checkpoint; reproduce: of parts, table and page, without it reproduce/<name>-<size>; "
           "import, export and finetune: of the model",
           {"train", "analyze", "convert", "prepare", "import", "export", "finetune", "reproduce"}),
      outside_file(text("resume", "", "run", "go on from a run's last checkpoint, by default the latest run; convert: with a conversion that was "
                        "interrupted", kTrainOrConvert),
                   "latest"),
      integer("evaluate_every", "250", "steps", "run", "validation every so many steps; 0 only at the end", kTrain),
      integer("evaluate_batches", "0", "batches", "run", "validation batches; 0 for the whole validation set",
              {"train", "eval", "convert"}),
      integer("stride", "", "tokens", "run",
              "perplexity by sliding windows, as for WikiText: each window of the model's context (or --length) begins this many tokens behind the last one and counts "
              "the tokens that no earlier one counted; the text's first token is not counted, documents are joined; without it windows follow each other",
              {"eval"}, 1, 1 << 24),
      flag("words", "false", "run",
           "perplexity per word too: the loss of all counted tokens over the words of --data, which are what white space separates, markup as <unk> included",
           {"eval"}),
      flag("linear_branch", "true", "run", "false: attention with a window sees nothing before it, to learn what the linear part is worth", {"eval"}),
      integer("stop_at", "0", "steps", "run", "stop after this step as Ctrl-C does, for --resume to go on; 0 for not; convert: of all stages together",
              kTrainOrConvert),
      integer("save_every", "250", "steps", "run", "checkpoint every so many steps; 0 only at the end, of a stage in convert", kTrainOrConvert),
      integer("log_every", "1", "steps", "run", "a line of log.jsonl every so many steps", kTrain, 1),
      flag("report", "true", "run", "write report.html and loss.svg at the end", kTrain),
      flag("quiet", "false", "run", "no progress line", kTrainOrConvert),
      text("device", "auto", "run", "where to compute; auto: the GPU if there is one", kEverywhere, {"auto", "cpu", "cuda"}),
      text("dtype", "auto", "run",
           "type of weights and activations; auto: bf16 (with f32 masters and sums) on a GPU, f32 on the CPU; tf32: f32 with "
           "products in TF32; step: f64, or f32 to show its rounding; export: of the numbers in the file, f32, bf16 or f16",
           kAlsoStepAndExport, {"auto", "f32", "bf16", "f16", "tf32", "f64"}),
      integer("threads", "", "threads", "run", "CPU threads; without it all cores that the process may use",
              kAlsoPrepare, 1, 4096),
      outside_file(
          text("config", "", "run", "file of options, name = value a line (.toml) or one object (.json)", kAlsoPrepare)),
  };
}

std::vector<Option> metric_options() {
  const std::vector<std::string> eval = {"eval"};
  return {
      text("metric", "", "metric",
           "compare two files instead of measuring a model: accuracy, f1, mcc (Matthews), pearson, spearman, rouge, or several with commas. rouge: "
           "ROUGE-1, 2, L and Lsum as rouge-score without stemmer, means over the items", eval),
      text("predictions", "", "metric", "file with a label, number or text a line; of a text, \\n stands for the end of a line, which rougeLsum sees", eval),
      text("references", "", "metric", "file with what is right, in the same order; for rouge also several with commas: the best counts for each item", eval),
      text("prediction_column", "", "metric", "of a file with tabs between columns: a number from 1, or a name in its first line", eval),
      text("reference_column", "", "metric", "the same of --references", eval),
      text("positive", "1", "metric", "the label whose F1 it is", eval),
  };
}

std::vector<Option> use_options() {
  return {
      text("checkpoint", "latest", "checkpoint",
           "a run's or checkpoint's directory; reproduce: a softmax model for spikiness and monotonicity, without it they train one",
           {"sample", "eval", "analyze", "export", "embed", "reproduce", "step", "info"}),
      text("prompt", "", "sampling", "text to go on from; without it a session on a terminal", kSample),
      integer("tokens", "200", "tokens", "sampling", "tokens to write", kSample, 1, 1 << 24),
      real("temperature", "0.8", "", "sampling", "0 always takes the most likely token", kSample, 0, 1000),
      integer("top_k", "0", "tokens", "sampling", "keep only the k most likely tokens; 0 keeps all", kSample),
      real("top_p", "1", "", "sampling", "keep the fewest likely tokens that reach this probability", kSample,
           kAboveZero, 1),
      integer("count", "1", "samples", "sampling", "how many texts", kSample, 1, 1 << 20),
      text("student", "", "analysis", "a run of linear attention, distilled from the softmax checkpoint, whose maps are put beside it", kAnalyze),
      text("lengths", "", "analysis", "tokens a text, as 64,128,256; without it a quarter, a half and all of the context", kAnalyze),
      integer("rows", "8", "texts", "analysis", "texts of each length, spread over the data; fewer where there are not so many", kAnalyze, 1, 1024),
      text("example", "hedgehog", "program", "a program to step through, by name; list: all of them, and the lessons", kStep),
      text("expr", "", "program", "a formula of numbers instead: \"L = (x*y + 3)^2; x = 2; y = -1\"", kStep),
      text("text", "", "program", "with --checkpoint: the text whose loss is stepped through; embed: one text, instead of lines",
           {"step", "embed"}),
      text("lesson", "", "program", "a lesson by name, or a file: text with lines \"> command\"", kStep),
      text("html", "", "program", "write the program as a page for a browser to this file, and stop; with --all to this directory", kStep),
      flag("all", "false", "program", "a page for every example, and an index", kStep),
      text("script", "", "program", "a file of commands, one a line, instead of those typed", kStep),
      text("op", "", "check", "only this op; without it every op", {"gradcheck"}),
      integer("draws", "10", "draws", "check", "random inputs a sample", {"gradcheck"}, 1, 100000),
      text("only", "all", "output", "measure one part alone; all leaves attention out on a CPU", {"bench"},
           {"all", "products", "attention", "steps", "distillation", "decoding"}),
      flag("json", "false", "output", "print JSON instead of a table",
           {"eval", "analyze", "convert", "embed", "gradcheck", "bench", "info"}),
      text("pooling", "mean", "vectors", "what becomes a text's vector: the mean of its tokens, the first token, or the model's pooler",
           {"embed"}, {"mean", "first", "pooler"}),
      flag("normalize", "true", "vectors", "vectors get length 1", {"embed"}),
      flag("similarity", "false", "vectors", "print cosines between the texts, a row each, instead of vectors; with --json both",
           {"embed"}),
  };
}

/// "a=1 b=2" as pairs.
std::vector<std::pair<std::string, std::string>> assignments(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> pairs;
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(' '));
    const size_t equals = item.find('=');
    pairs.emplace_back(item.substr(0, equals), item.substr(equals + 1));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
  }
  return pairs;
}

}  // namespace

const std::vector<Option>& option_table() {
  static const std::vector<Option> table = [] {
    std::vector<Option> all;
    for (const auto& part : {data_options(), conversion_options(), model_options(), training_options(), use_options(), metric_options(), experiment_options(), run_options()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }();
  return table;
}

const std::vector<Command>& command_table() {
  static const std::vector<Command> table = {
      {"train", "train a model; writes checkpoints, a log and a report", "hedgehog train --data=my.txt --minutes=10"},
      {"sample", "let a trained model write", "hedgehog sample --prompt=\"Once upon a time\" --temperature=0.7"},
      {"eval", "measure a trained model: loss, perplexity, answers; or predictions: accuracy, ROUGE and others", "hedgehog eval --data=other.txt"},
      {"analyze", "look at attention weights: entropy, order, distance from softmax; writes a page",
       "hedgehog analyze --checkpoint=runs/latest --lengths=64,128"},
      {"convert", "turn a softmax model into one of linear attention: distil feature maps, finetune",
       "hedgehog convert --from=runs/shakespeare-softmax-1 --attention=hedgehog"},
      {"prepare", "learn byte-pair tokens from a text; writes tokenizer.json, and the text as tokens", "hedgehog prepare --data=my.txt --vocabulary=8192 --out=tokens"},
      {"import", "read a model of another library: GPT-2, Llama, SmolLM2, Mistral, Qwen2, BERT",
       "hedgehog import --from=SmolLM2-135M --out=smollm"},
      {"export", "write a model as a folder of Hugging Face, for other libraries to read",
       "hedgehog export --checkpoint=runs/latest --out=folder --dtype=bf16"},
      {"embed", "turn texts, one a line, into vectors by an encoder such as BERT",
       "hedgehog embed --checkpoint=all-MiniLM-L6-v2 --data=lines.txt --similarity"},
      {"finetune", "teach an encoder classes of texts; eval measures it",
       "hedgehog finetune --from=all-MiniLM-L6-v2 --data=train.tsv --out=told"},
      {"reproduce", "repeat an experiment of the paper; without a name list them", "hedgehog reproduce recall --size=small", "NAME"},
      {"step", "walk through a program's values and gradients, number by number, with a proof beside each", "hedgehog step scalar",
       "NAME"},
      {"gradcheck", "check every gradient against differences", "hedgehog gradcheck --op=layernorm"},
      {"bench", "time products, attention and training steps against the machine's peak", "hedgehog bench --preset=char-cpu"},
      {"info", "show devices, BLAS kernel, a checkpoint, a model's size", "hedgehog info --preset=gpt2"},
  };
  return table;
}

const std::vector<Preset>& preset_table() {
  const auto preset = [](const char* name, const char* help, const char* values) {
    return Preset{name, help, assignments(values)};
  };
  // the values of karpathy/nanoGPT:config/train_shakespeare_char.py, train_gpt2.py and its README
  static const std::vector<Preset> table = {
      preset("story", "2 layers, width 64, for the built-in stories: minutes on two cores",
             "layers=2 heads=2 width=64 context=160 positions=none short_convolution=4 norm=rms init=mimetic tied_head=false "
             "embedding_init=1 batch=16 steps=10000 learning_rate=3e-3 min_learning_rate=1e-5 beta2=0.95 warmup=200 "
             "weight_decay=0.1 evaluate_every=1000 save_every=1000"),
      preset("tiny", "2 layers, width 64: seconds to minutes on a CPU",
             "layers=2 heads=2 width=64 context=128 batch=16 steps=2000"),
      preset("char-cpu", "nanoGPT's recipe for a CPU: 4 layers, width 128, context 64",
             "layers=4 heads=4 width=128 context=64 batch=12 steps=2000 dropout=0 bias=false positions=learned "
             "tokenizer=char learning_rate=1e-3 min_learning_rate=1e-4 beta2=0.99 warmup=100 weight_decay=0.1"),
      preset("char", "nanoGPT's recipe for a GPU: 6 layers, width 384, context 256",
             "layers=6 heads=6 width=384 context=256 batch=64 steps=2500 dropout=0.2 bias=false positions=learned init=gpt2 "
             "tokenizer=char learning_rate=1e-3 min_learning_rate=1e-4 beta2=0.99 warmup=100 weight_decay=0.1"),
      preset("gpt2", "GPT-2's size: 12 layers, width 768, context 1024",
             "layers=12 heads=12 width=768 context=1024 batch=12 gradient_accumulation=40 steps=600000 bias=true "
             "positions=learned init=gpt2 learning_rate=6e-4 min_learning_rate=6e-5 beta2=0.95 warmup=2000 "
             "weight_decay=0.1"),
      preset("gpt2-medium", "GPT-2 medium's size: 24 layers, width 1024, context 1024",
             "layers=24 heads=16 width=1024 context=1024 batch=8 gradient_accumulation=60 steps=600000 bias=true "
             "positions=learned init=gpt2 learning_rate=3e-4 min_learning_rate=3e-5 beta2=0.95 warmup=2000 "
             "weight_decay=0.1"),
  };
  return table;
}

}  // namespace hedgehog
