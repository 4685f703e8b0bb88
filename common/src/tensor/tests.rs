#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let shape = prop::collection::vec(0u64..4, 0..=4);
    (prop::sample::select(&DType::ALL[..]), shape).prop_flat_map(|(dtype, shape)| {
        let bytes = usize::try_from(shape.iter().product::<u64>() * dtype.bytes()).unwrap();
        let byte = if dtype == DType::Bool {
            0..=1u8
        } else {
            0..=255u8
        };
        prop::collection::vec(byte, bytes)
            .prop_map(move |data| Tensor::new(dtype, shape.clone(), data.into()).unwrap())
    })
}

fn any_spec() -> impl Strategy<Value = TensorSpec> {
    let dim = prop_oneof![
        any::<u64>().prop_map(Dim::Fixed),
        "[a-zA-Z_][a-z0-9_]{0,9}".prop_map(Dim::Free)
    ];
    let name = "[ -~äß]{1,40}";
    (
        name,
        prop::sample::select(&DType::ALL[..]),
        prop::collection::vec(dim, 0..=RANK_MAX),
    )
        .prop_map(|(name, dtype, shape)| TensorSpec::new(name, dtype, shape).unwrap())
}

/// NaNs keep no payload in JSON: compare numbers by value.
fn same_numbers(a: &Tensor, b: &Tensor) -> bool {
    let text = |t: &Tensor| serde_json::to_string(&Json(t)).unwrap();
    a.dtype() == b.dtype() && a.shape() == b.shape() && text(a) == text(b)
}

proptest! {
    #[test]
    fn npy_round_trips(tensor in any_tensor()) {
        let file = Bytes::from(to_npy(&tensor));
        prop_assert_eq!((file.len() - tensor.data().len()) % 64, 0);
        prop_assert_eq!(from_npy(&file).unwrap(), tensor);
    }

    #[test]
    fn json_round_trips(tensor in any_tensor()) {
        let text = serde_json::to_string(&Json(&tensor)).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        let back = from_json(&value, None).unwrap();
        prop_assert!(same_numbers(&tensor, &back), "{}", text);
    }

    #[test]
    fn postcard_round_trips_and_survives_damage(tensor in any_tensor(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut frame = postcard::to_stdvec(&tensor).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Tensor>(&frame).unwrap(), tensor);
        let at = at.index(frame.len());
        frame[at] = byte;
        if let Ok(decoded) = postcard::from_bytes::<Tensor>(&frame) {
            let again = Tensor::new(decoded.dtype(), decoded.shape().to_vec(), decoded.data().clone());
            prop_assert_eq!(again.unwrap(), decoded);
        }
    }

    #[test]
    fn specs_round_trip(spec in any_spec()) {
        prop_assert_eq!(spec.to_string().parse::<TensorSpec>().unwrap(), spec);
    }

    #[test]
    fn no_bytes_make_the_npy_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = from_npy(&Bytes::from(bytes));
    }

    #[test]
    fn no_header_makes_the_npy_reader_panic(header in "[{}()\\[\\]'\":,0-9LTrueFalsdchopn_<>|fiub -]{0,120}") {
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        let _ = from_npy(&Bytes::from(file));
    }

    #[test]
    fn damaged_npy_never_lies(tensor in any_tensor(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut file = to_npy(&tensor);
        let at = at.index(file.len());
        file[at] = byte;
        if let Ok(read) = from_npy(&file.into()) {
            prop_assert_eq!(read.data().len() as u64, read.elements() * read.dtype().bytes());
        }
    }

    #[test]
    fn no_text_makes_the_spec_parser_panic(text in "\\PC{0,60}") {
        let _ = text.parse::<TensorSpec>();
    }
}

fn npy(version: u8, header: &str, data: &[u8]) -> Bytes {
    let mut file = b"\x93NUMPY".to_vec();
    file.extend_from_slice(&[version, 0]);
    if version == 1 {
        file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    } else {
        file.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    }
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file.into()
}

#[test]
fn npy_reads_what_numpy_writes() {
    let one = Tensor::from_f32(vec![2], &[1.5, -2.0]).unwrap();
    for version in 1..=3 {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }       \n";
        let data = [1.5f32.to_le_bytes(), (-2f32).to_le_bytes()].concat();
        assert_eq!(from_npy(&npy(version, header, &data)).unwrap(), one);
    }
    let header = "{'descr': '>f4', 'fortran_order': True, 'shape': (2L,)}\n";
    let data = [1.5f32.to_be_bytes(), (-2f32).to_be_bytes()].concat();
    assert_eq!(from_npy(&npy(1, header, &data)).unwrap(), one, "big-endian");
    let scalar = npy(
        1,
        "{\"shape\": (), 'fortran_order': False, 'descr': '|b1'}",
        &[1],
    );
    assert_eq!(
        from_npy(&scalar).unwrap(),
        Tensor::new(DType::Bool, vec![], vec![1].into()).unwrap()
    );
}

#[test]
fn npy_refusals_name_the_reason() {
    let cases: [(&[u8], &str); 9] = [
        (b"", "numpy.save"),
        (b"PK\x03\x04", ".npz"),
        (b"\x93NUMPY\x09\x00\x00\x00", "version 9.0"),
        (b"\x93NUMPY\x01\x00\xff\x00{", "cut off"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "4294967295 bytes"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "lacks one of"),
        (
            &npy(
                1,
                "{'descr': '<f4', 'fortran_order': True, 'shape': (1,1)}",
                &[0; 4],
            ),
            "Fortran",
        ),
        (
            &npy(1, "{'descr': [('a', '<f4')], 'shape': (1,)}", &[0; 4]),
            "structured",
        ),
        (
            &npy(
                1,
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
                &[0; 8],
            ),
            "`|O`",
        ),
    ];
    for (file, expected) in cases {
        let error = from_npy(&Bytes::copy_from_slice(file))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }
    let huge = "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}";
    assert!(matches!(
        from_npy(&npy(1, huge, &[])),
        Err(Error::TooLarge { .. })
    ));
    let short = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}";
    assert!(matches!(
        from_npy(&npy(1, short, &[0; 8])),
        Err(Error::Length {
            expected: 12,
            got: 8,
            ..
        })
    ));
}

#[test]
fn tensors_are_bounded() {
    let new = |shape: Vec<u64>| Tensor::new(DType::U8, shape, Bytes::new());
    assert!(matches!(
        new(vec![1; RANK_MAX + 1]),
        Err(Error::Rank { .. })
    ));
    assert!(matches!(
        new(vec![u64::MAX, 2]),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        new(vec![0, u64::MAX, u64::MAX]),
        Err(Error::TooLarge { .. })
    ));
    assert!(new(vec![0, 64]).is_ok());
    assert!(
        matches!(new(vec![ELEMENTS_MAX]), Err(Error::Length { .. })),
        "at the bound"
    );
    assert!(matches!(
        new(vec![ELEMENTS_MAX + 1]),
        Err(Error::TooLarge { .. })
    ));
    let two = Tensor::new(DType::Bool, vec![2], vec![1, 2].into());
    assert_eq!(two, Err(Error::BoolByte { index: 1, byte: 2 }));
}

#[test]
fn json_forms() {
    let expected = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.5]).unwrap();
    let nested = json!([[1, 2], [3, 4.5]]);
    assert_eq!(from_json(&nested, None).unwrap(), expected);
    assert_eq!(from_json(&json!({"data": nested}), None).unwrap(), expected);
    let flat = json!({"dtype": "f32", "shape": [2, 2], "data": [1, 2, 3, 4.5]});
    assert_eq!(from_json(&flat, Some(DType::I8)).unwrap(), expected);
    let special = json!(["NaN", "Infinity", "-Infinity", 0.1]);
    let tensor = from_json(&special, Some(DType::F32)).unwrap();
    assert!(tensor.to_f32().unwrap()[0].is_nan());
    let text = serde_json::to_string(&Json(&tensor)).unwrap();
    assert_eq!(
        text,
        r#"{"dtype":"f32","shape":[4],"data":["NaN","Infinity","-Infinity",0.1]}"#
    );
    let big = from_json(&json!([i64::MIN, i64::MAX]), Some(DType::I64)).unwrap();
    assert_eq!(big.to_i64().unwrap(), [i64::MIN, i64::MAX]);
    let half = from_json(&json!([0.1, 65504]), Some(DType::F16)).unwrap();
    assert_eq!(half.elements(), 2);
}

#[test]
fn json_refusals_name_the_place() {
    let cases = [
        (
            json!([[1, 2], [3]]),
            DType::F32,
            "[1]: has 1 elements, its neighbours have 2",
        ),
        (
            json!([[1, 2], 3]),
            DType::F32,
            "[1]: expected an array of 2",
        ),
        (json!([1, [2]]), DType::F32, "[1]: is an array"),
        (
            json!([1, 256]),
            DType::U8,
            "[1]: must be an integer that fits u8",
        ),
        (json!([1.5]), DType::I64, "[0]: must be an integer"),
        (json!([1e39]), DType::F32, "[0]: is too large for f32"),
        (json!([1e5]), DType::F16, "[0]: is too large for f16"),
        (json!([1]), DType::Bool, "[0]: must be true or false"),
        (json!("x"), DType::F32, "the top: must be a number"),
        (
            json!({"data": [1], "shap": [1]}),
            DType::F32,
            "shap: unknown field",
        ),
        (
            json!({"dtype": "f8", "data": [1]}),
            DType::F32,
            "`f8` is not a tensor dtype",
        ),
        (
            json!({"shape": [2, 2], "data": [1, 2, 3]}),
            DType::F32,
            "data: has 3 elements",
        ),
        (
            json!({"shape": [2], "data": [1, 2, 3]}),
            DType::F32,
            "shape: says [2]",
        ),
        (json!({"shape": [1]}), DType::F32, "data: is missing"),
        (
            json!([[[[[[[[[1]]]]]]]]]),
            DType::F32,
            "at most 8 dimensions",
        ),
    ];
    for (value, dtype, expected) in cases {
        let error = from_json(&value, Some(dtype)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should say {expected}");
    }
}

#[test]
fn specs_parse_and_refuse() {
    let spec: TensorSpec = "serving/x:0:f32[batch, 64]".parse().unwrap();
    assert_eq!((spec.name(), spec.dtype()), ("serving/x:0", DType::F32));
    assert_eq!(spec.shape(), [Dim::Free("batch".into()), Dim::Fixed(64)]);
    assert_eq!(spec.to_string(), "serving/x:0:f32[batch,64]");
    let cases = [
        ("X:f32", "brackets"),
        ("X:f32batch]", "opening bracket"),
        ("f32[1]", "colon"),
        ("X:float[1]", "`float` is not a tensor dtype"),
        (":f32[1]", "a tensor name has"),
        ("X:f32[-1]", "a dimension is a number"),
        ("X:f32[1,]", "a dimension is a number"),
        ("X:f32[99999999999999999999]", "a dimension is a number"),
        ("X:f32[1,1,1,1,1,1,1,1,1]", "at most 8"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<TensorSpec>().unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("X:f32[batch,64]"),
            "{error}"
        );
    }
}

#[test]
fn check_binds_free_dimensions_once() {
    let x: TensorSpec = "x:f32[n,2]".parse().unwrap();
    let y: TensorSpec = "y:f32[n,_]".parse().unwrap();
    let zeros = |shape: Vec<u64>| {
        let elements = usize::try_from(shape.iter().product::<u64>()).unwrap();
        Tensor::from_f32(shape, &vec![0.0; elements]).unwrap()
    };
    let mut bindings = Bindings::new();
    x.check(&zeros(vec![3, 2]), &mut bindings).unwrap();
    assert_eq!(bindings, Bindings::from([("n".into(), 3)]));
    y.check(&zeros(vec![3, 9]), &mut bindings).unwrap();
    let error = y.check(&zeros(vec![4, 9]), &mut bindings).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `y` must be f32[n,_] with n = 3, got f32[4,9]"
    );
    assert_eq!(bindings.len(), 1);
    for wrong in [vec![3], vec![3, 3], vec![0, 2], vec![3, 2, 1]] {
        x.check(&zeros(wrong), &mut Bindings::new()).unwrap_err();
    }
    let ints = Tensor::from_i64(vec![1, 2], &[0, 0]).unwrap();
    let error = x.check(&ints, &mut Bindings::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `x` must be f32[n,2], got i64[1,2]"
    );
}
