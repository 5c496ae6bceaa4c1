#include "common/binding.h"

#include <limits>

namespace modfast {

std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + text_of(tensor.size(d));
  return text + ")";
}

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: break;
  }
  fail(name, " must be float32, float64, float16 or bfloat16, got ",
       torch::headeronly::toString(tensor.scalar_type()));
}

void check_dense(const Tensor& tensor, const char* name) {
  REQUIRE(tensor.layout() == torch::headeronly::Layout::Strided, name, " must be a dense (strided) tensor");
}

void check_num_clusters(int64_t num_clusters) {
  REQUIRE(1 <= num_clusters && num_clusters < std::numeric_limits<int32_t>::max(),
          "num_clusters must be a positive 32-bit number, got ", num_clusters);
}

}  // namespace modfast
