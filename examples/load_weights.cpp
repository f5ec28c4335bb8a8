// Weights travel by name in safetensors files: what Python saved from the same mechanism loads
// here.

#include <attzoo/attzoo.hpp>
#include <iostream>

int main() {
  const auto path = std::filesystem::temp_directory_path() / "attzoo_example.safetensors";
  attzoo::GroupedSelfAttention saved(64, 8, 2), loaded(64, 8, 2);
  attzoo::save_state_dict(*saved, path);
  attzoo::load_state_dict(*loaded, path);
  saved->eval();
  loaded->eval();
  const auto x = torch::randn({1, 10, 64});
  const bool same = torch::equal(saved(x).output, loaded(x).output);
  std::cout << "outputs equal: " << std::boolalpha << same << '\n';

  attzoo::GroupedSelfAttention other(64, 8, 4);  // other shapes: a clear error, nothing is changed
  try {
    attzoo::load_state_dict(*other, path);
  } catch (const c10::Error& error) {
    std::cout << error.what_without_backtrace() << '\n';
  }
  std::filesystem::remove(path);
  return same ? 0 : 1;
}
