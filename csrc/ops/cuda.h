// What the operators on a GPU share: whose memory it is, the stream, errors of launches.
//
// The same files are compiled for the emulator of the tests (MT2O_EMULATED): there the kernels work on CPU tensors and
// the operators belong to mt2o_ext_emulated.
#pragma once
#include "../cuda/kernels.h"
#include "library.h"
#include "tensors.h"

#if !defined(MT2O_EMULATED)
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace mt2o::ops {

#if defined(MT2O_EMULATED)

class CurrentDevice {
 public:
  CurrentDevice(const Tensor&, const char*) {}
  template <class T>
  void check(const T&, const char*) const {}
  cuda::Stream stream() const { return nullptr; }
};

#else

using GetStream = AOTITorchError (*)(int32_t, void**);

// torch's function for it.  libtorch_cuda is loaded wherever torch has CUDA, but privately; so it is looked up here and
// not linked to: this library then also loads where torch has no CUDA.  (The library is never closed: torch stays.)
inline GetStream find_get_stream() {
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* found = torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
  STD_TORCH_CHECK(found != nullptr, "mt2o_ext: tensors are on a GPU, but libtorch_cuda.so is not loaded");
  return reinterpret_cast<GetStream>(found);
}

// Makes the device of a tensor the current one as long as this lives.
class CurrentDevice {
 public:
  CurrentDevice(const Tensor& of, const char* name) : index_(of.get_device_index()), guard_(index_), name_(name) {
    check(of, name);
  }
  // The dispatcher comes here if any tensor is on a GPU; kernels need all of them there.
  void check(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == index_, "mt2o_ext: ", name, " must be on the device of ",
                    name_);
  }
  void check(const MaybeTensor& t, const char* name) const {
    if (t.has_value()) check(*t, name);
  }

  // The stream that is current in torch.
  cuda::Stream stream() const {
    static const GetStream get = find_get_stream();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  const char* name_;
};

#endif

inline cuda::Extent extent_of(const Tensor& chunks, const Tensor& rows) { return {chunks.size(0), rows.size(-1)}; }

inline void check_launched(cuda::Problem problem, const char* name) {
  STD_TORCH_CHECK(problem == nullptr, "mt2o_ext::", name, ": CUDA: ", problem ? problem : "");
}

}  // namespace mt2o::ops
