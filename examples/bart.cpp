// Loads a BART and writes what it answers (docs/encoder_decoder.md): facebook/bart-base from the
// folder that is given, or a tiny one of random weights. Tokens are numbers here.

#include "bart.hpp"

#include <iostream>

int main(int argc, char** argv) {
  // [load]
  const std::string tiny = ATTZOO_SOURCE_DIR "/tests/golden-models/bart";
  Bart model(argc > 1 ? BartConfig()
                      : BartConfig{.vocab_size = 50,
                                   .d_model = 16,
                                   .heads = 4,
                                   .ffn_dim = 24,
                                   .layers = 2,
                                   .positions = 24});
  attzoo::load_state_dict(model, argc > 1 ? argv[1] : tiny, attzoo::names::bart(),
                          {.convert_dtype = true});
  model.eval();
  // [/load]
  const torch::NoGradGuard no_grad;
  const auto read = argc > 1 ? torch::tensor({{0, 31414, 232, 2}, {0, 20920, 2, 1}})
                             : torch::tensor({{0, 31, 23, 2}, {0, 20, 2, 1}});
  const auto written = model.write(read, 12);
  std::cout << written << '\n';

  // Without caches it is the same.
  const auto start = torch::full({2, 1}, model.config.start);
  const auto before = torch::cat({start, written.slice(1, 0, -1)}, 1);
  const auto again = model.decode(before, model.encode(read), 0).argmax(-1);
  return torch::equal(again, written) ? 0 : 1;
}
